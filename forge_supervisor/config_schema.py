"""The JSON Schema of config.toml, by which editors complete and check it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic_core import core_schema


def json_schema(table: type[BaseModel]) -> dict[str, Any]:
    """Make the JSON Schema (draft 2020-12) of a table."""
    return {"$schema": _Schema.schema_dialect, **table.model_json_schema(schema_generator=_Schema)}


class _Schema(GenerateJsonSchema):
    """Says nothing of null, which TOML does not have, nor of the titles that pydantic makes up."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        if isinstance(schema.get("default"), str | int | float):
            return super().default_schema(schema)
        return self.generate_inner(schema["schema"])

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False
