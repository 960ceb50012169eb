"""Two additions to Sphinx for a book of computed results: looked-up numbers, and figures for light and dark pages.

``{val}`key:format` `` in running text becomes a number of the results, so that prose never holds a typed one::

    AdamW is better by {val}`gap.cosine.value:.2f` points.

``{themed-figure}`` is a figure with one number, one label and one caption, but two pictures::

    ```{themed-figure} generated/answer-light.svg
    :name: fig-answer
    :alt: What a reader who does not see the picture must know.

    The caption.
    ```

Below its caption stands, folded away, the command that made it: that of the experiment NAME if the caption says
``{val}`made.NAME` ``, else that of the notebook whose page it is on. A picture drawn by hand has none.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.directives.patches import Figure
from sphinx.util import logging
from sphinx.util.docutils import SphinxRole

logger = logging.getLogger(__name__)

MINUS = "\N{MINUS SIGN}"


def look_up(values: dict[str, Any], key: str) -> Any:
    """The entry of nested dictionaries at a dotted key; KeyError where the path ends early or leads to a branch."""
    found: Any = values
    for name in key.split("."):
        if not isinstance(found, dict):
            raise KeyError(key)
        found = found[name]
    if isinstance(found, (dict, list)):
        raise KeyError(key)
    return found


def show(value: Any, spec: str) -> str:
    """The value in the format `spec` of Python's format(), with a true minus sign.

    A value that is known to be missing (null, or not a finite number) reads "not available"; ValueError or TypeError
    where the format does not fit.
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "not available"
    text = format(value, spec)
    return text if isinstance(value, str) else text.replace("-", MINUS)


class ValueRole(SphinxRole):
    """``{val}`key:format` ``: one entry of the values file. What cannot be shown is a warning, which fails `-W`."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        key, _, spec = (part.strip() for part in self.text.partition(":"))
        name = self.config.bookkit_values
        self.env.note_dependency(name)  # a page is read again when its numbers have changed
        try:
            text = show(look_up(json.loads(Path(self.env.srcdir, name).read_text(encoding="utf-8")), key), spec)
        except OSError:
            return self.problem(f"{name} does not exist; run the notebooks first")
        except KeyError:
            return self.problem(f"{name} has no value {key!r}")
        except (TypeError, ValueError) as error:
            return self.problem(f"value {key!r} of {name} cannot be shown as {spec!r}: {error}")
        return [nodes.inline(self.rawtext, text, classes=["val"])], []

    def problem(self, message: str) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """A warning at the place of the role, and its source text on the page."""
        logger.warning(message, location=self.get_location(), type="bookkit", subtype="val")
        return [nodes.problematic(self.rawtext, self.rawtext)], []


class ThemedFigure(Figure):
    """A figure whose picture NAME-light.EXT gives way to NAME-dark.EXT on dark pages.

    Every option of `figure` works; `:alt:` is required. Both pictures lie in a container of their own: the theme hides
    what follows a picture of the other mode, which would be the caption.
    """

    def run(self) -> list[nodes.Node]:
        light, dark = self.arguments[0], self.arguments[0].replace("-light.", "-dark.")
        if light == dark:
            raise self.error(f"themed-figure needs the name of the light picture, NAME-light.EXT, got {light!r}")
        if not self.options.get("alt", "").strip():
            raise self.error(f"themed-figure {light!r} needs :alt:")
        produced = super().run()
        for figure in (node for node in produced if isinstance(node, nodes.figure)):
            day = next(iter(figure.findall(nodes.image)))
            night = day.deepcopy()
            night["uri"] = night["uri"].replace("-light.", "-dark.")
            day["classes"].append("only-light")
            night["classes"].append("only-dark")
            box = nodes.container(classes=["themed-figure"])
            day.parent.replace(day, box)
            box += [day, night]
            if made_by := self.made_by():
                legend = next(iter(figure.findall(nodes.legend)), None)
                if legend is None:
                    figure += (legend := nodes.legend())
                legend += made_by
        return produced

    def made_by(self) -> list[nodes.Node]:
        """The commands that make this picture and a link to its notebook, in a box that opens; [] if drawn by hand."""
        env = self.state.document.settings.env
        results = re.search(r"\{val\}`made\.(\w+)`", "\n".join(self.content))
        notebook = results[1] if results else env.docname.removeprefix("notebooks/")
        if "generated/" not in self.arguments[0] or not (results or env.docname.startswith("notebooks/")):
            return []
        commands, how = [f".venv/bin/python -m decoupled notebooks {notebook}"], "This draws it again."
        if results:
            env.note_dependency(env.config.bookkit_values)
            try:
                values = json.loads(Path(env.srcdir, env.config.bookkit_values).read_text(encoding="utf-8"))
                profile = look_up(values, "published.profile")
            except (OSError, KeyError) as error:
                raise self.error(f"{env.config.bookkit_values} does not name the published profile: {error}") from None
            commands.append(f"make reproduce PROFILE={profile} EXPERIMENTS={notebook}")
            how = "The first line draws it again from the published runs, the second trains those runs anew."
        options = env.config.html_theme_options
        path = f"notebooks/{notebook}.ipynb"
        source = f"{options['repository_url']}/blob/{options['repository_branch']}/{path}"
        text = "\n".join(commands)
        return [
            nodes.raw("", '<details class="made-by"><summary>Show the command that made this</summary>', format="html"),
            nodes.literal_block(text, text, language="bash"),
            nodes.paragraph("", "", nodes.Text(f"{how} Source: "), nodes.reference("", path, refuri=source)),
            nodes.raw("", "</details>", format="html"),
        ]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the role, the directive and `bookkit_values`, the values file relative to the book's folder."""
    app.add_config_value("bookkit_values", "generated/values.json", "env", (str,))
    app.add_role("val", ValueRole())
    app.add_directive("themed-figure", ThemedFigure)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
