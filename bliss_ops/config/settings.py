"""What every section of settings is made of: the base class, names, parsing with readable errors, and identity.

Settings that cannot change a result (group counts, micro-batches, paths) are marked `neutral` and stay out of every fingerprint.
"""

from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from bliss_ops.names import check_address, check_name, check_stored


def _source_address(uri: str) -> str:
    if uri:  # an empty one is none: whether there must be one, the field says
        check_address(uri)
    return uri


SettingsT = TypeVar("SettingsT", bound=BaseModel)

Name = Annotated[str, AfterValidator(check_name)]
SourceAddress = Annotated[str, AfterValidator(_source_address)]  # what source data is read from
StoredAddress = Annotated[str, AfterValidator(check_stored)]  # a local path or s3://


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def neutral(**kwargs: Any) -> Any:
    """A field that cannot change a result and therefore stays out of fingerprints."""
    return Field(json_schema_extra={"identity": False}, **kwargs)


def added(**kwargs: Any) -> Any:
    """A field that came with a later version: out of fingerprints while it has its default, so that what is finished stays valid."""
    return Field(json_schema_extra={"identity": "unless default"}, **kwargs)


def parse(model: type[SettingsT], values: dict[str, Any] | str | bytes, *, where: str) -> SettingsT:
    """Validate `values`, turning pydantic's error into one line per field: name, value received, what is allowed."""
    try:
        return model.model_validate_json(values) if isinstance(values, str | bytes) else model.model_validate(values)
    except ValidationError as error:
        lines = []
        for item in error.errors(include_url=False):
            field = ".".join(str(part) for part in item["loc"]) or "(settings)"
            received = "" if item["type"] in ("extra_forbidden", "missing", "value_error") else f", got {item['input']!r}"
            message = "there is no such setting" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
            lines.append(f"  {field}: {message}{received}")
        raise ValueError(f"{where}:\n" + "\n".join(lines)) from None


def identity(settings: BaseModel) -> dict[str, Any]:
    """The settings that can change a result, as plain JSON values (nested sections included)."""
    values: dict[str, Any] = {}
    for name, field in type(settings).model_fields.items():
        extra = field.json_schema_extra
        rule, value = extra.get("identity") if isinstance(extra, dict) else None, getattr(settings, name)
        if rule is False or (rule == "unless default" and value == field.get_default()):
            continue
        values[name] = _plain(value)
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return identity(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
