"""What the report's pages share: how a page is put together, and a run's settings as a table."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from bliss_ops.report import charts, spending

HERE = Path(__file__).parent


def render(template: str, **values: Any) -> str:
    """One self-contained page: the template with the style and the report's ways of writing numbers."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"signed": charts.signed, "short": charts.number, "plain": charts.plain}
    environment.filters |= {"duration": spending.duration, "magnitude": spending.magnitude, "memory": spending.memory}
    return environment.get_template(template).render(style=(HERE / "style.css").read_text(encoding="utf-8"), **values)


def settings(config: BaseModel, prefix: str = "") -> list[dict[str, Any]]:
    """Every setting with its value, whether it is the default, and its sentence."""
    rows: list[dict[str, Any]] = []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            rows += settings(value, f"{prefix}{name}.")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, tuple) else "" if value is None else str(value)
            changed = field.is_required() or value != field.get_default(call_default_factory=True)
            rows.append({"name": prefix + name, "value": shown, "changed": changed, "description": field.description or ""})
    return rows
