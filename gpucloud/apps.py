from __future__ import annotations

from django.apps import AppConfig


class SiteConfig(AppConfig):
    name = "gpucloud"

    def ready(self) -> None:
        """Register the checks of the settings."""
        from gpucloud import checks  # noqa: F401
