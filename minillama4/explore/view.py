"""What the views have in common: where there is no kernel, HTML of their own stands in for them."""

import anywidget

from .export import page
from .script import small_page_script, small_style


class KeepsHtml:
    """A widget that leaves ``to_html()`` beside itself, for where there is no kernel."""

    def to_html(self) -> str:
        raise NotImplementedError(f"{type(self).__name__} has no to_html")

    def _repr_mimebundle_(self, **options):
        bundle = super()._repr_mimebundle_(**options)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        return {**data, "text/html": self.to_html()}, metadata


class SmallView(KeepsHtml, anywidget.AnyWidget):
    """A view whose JavaScript answers by itself. A class of it names ``files`` in ``static``."""

    files: tuple[str, ...] = ()

    def still(self) -> str:
        """The picture that stays where there is no JavaScript."""
        raise NotImplementedError(f"{type(self).__name__} has no still picture")

    def to_html(self) -> str:
        """A piece of HTML that needs no kernel and no network: all of the view, and a still
        picture where there is no JavaScript."""
        own = set(self.keys) - {"layout", "tabbable", "tooltip"}
        values = {name: getattr(self, name) for name in self.keys if name in own and name[0] != "_"}
        return page(values, self.still(), small_page_script(*self.files), small_style())
