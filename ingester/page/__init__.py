"""The status page: one look tells whether it collects. Drawn on the server from `Report.status()` and the history."""

from ingester.page.document import CONTENT_SECURITY_POLICY, FAVICON, render

__all__ = ["CONTENT_SECURITY_POLICY", "FAVICON", "render"]
