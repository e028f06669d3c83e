"""How many visitors the demo page may have at once: a kernel manager that counts.

Voila asks for this class by name, see `lad.widgets.demo`.
"""

from __future__ import annotations

from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado.web import HTTPError
from traitlets import Int

__all__ = ["Visitors"]


class Visitors(AsyncMappingKernelManager):
    """Refuses a visitor when there are `most` already."""

    most = Int(8, config=True, help="kernels at a time")

    async def start_kernel(self, **kwargs: object) -> str:
        """Start a kernel, if there is room for one more visitor."""
        if len(self.list_kernel_ids()) >= self.most:
            raise HTTPError(503, "The demo is full: please come back in a few minutes.")
        return await super().start_kernel(**kwargs)
