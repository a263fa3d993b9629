"""The site: static pages that open from ``file://``, built from records alone (:mod:`reports.apps.site.builder`)."""

from reports.apps.site.builder import Part, Site, build_site

__all__ = ["Part", "Site", "build_site"]
