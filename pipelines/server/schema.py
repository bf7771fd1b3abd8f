"""What requests and answers hold: the API's schema is made of this.

Answers of searches are plain dicts: each is written once, and what is in it is checked where it comes from.
"""

from __future__ import annotations

import base64
from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, with_config
from typing_extensions import TypedDict  # pydantic takes typing's own only from Python 3.12 on


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _from_base64(value: Any) -> Any:
    if not isinstance(value, str):
        return value  # a file that was uploaded
    try:
        return base64.b64decode(value, validate=True)
    except ValueError as error:
        raise ValueError("expected a picture file in Base64") from error


def _written(value: str) -> str:
    """JSON may hold halves of characters, which no tokenizer, column or answer can."""
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("expected Unicode text, found half of a surrogate pair")
    return value


_Text = Annotated[str, AfterValidator(_written)]


class SearchRequest(_Strict):
    """One query: words, a picture, both, a vector, or a product that the others should be like."""

    text: _Text | None = Field(None, description="The query's words.")
    image: Annotated[bytes, BeforeValidator(_from_base64)] | None = Field(
        None, description="A picture file (JPEG, PNG, WebP ...) in Base64."
    )
    image_url: _Text | None = Field(None, description="Address of a picture, fetched under the rules of `fetch:`.")
    image_weight: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="Of words and picture: the picture's weight. Default: the encoder's own."
    )
    vector: list[float] | None = Field(None, description="A query vector, as the version's query encoder makes them.")
    encoder_fingerprint: _Text | None = Field(
        None, description="The encoder that made `vector`; refused (409) where the version was made by another one."
    )
    product_id: _Text | None = Field(None, description="Products like this one.")
    index: _Text | None = Field(None, description="Which index; default: the first.")
    version: _Text | None = Field(None, description="Which version; default: the published one.")
    k: int = Field(10, ge=1, description="Answers wanted.")
    offset: int = Field(0, ge=0, description="Answers of the same sequence to leave out, for further pages.")
    filter: _Text | None = Field(
        None, description="Only products for which this is true: \"kind = 'mug' and price < 20\"."
    )
    group: bool | _Text | None = Field(
        None, description="A column of which each value answers once; true: the catalog's."
    )
    columns: list[_Text] | None = Field(None, description="Columns of the products to send; default: all.")
    explain: bool = Field(False, description="Say how each score came about.")


@with_config(extra="forbid")
class Hit(TypedDict):
    """One product found; of a group its best member."""

    rank: int
    product_id: str
    score: float
    row: int
    columns: dict[str, Any]
    members: NotRequired[int]
    image: NotRequired[str]
    explanation: NotRequired[dict[str, Any]]


@with_config(extra="forbid")
class SearchAnswer(TypedDict):
    """What was found, by which version."""

    index: str
    version: str
    encoder_fingerprint: str
    hits: list[Hit]
    more: Annotated[bool, Field(description="Whether a further page holds anything.")]
    encode_ms: float
    search_ms: float


class VersionInfo(_Strict):
    """A version that stands at an index's address."""

    version: str
    created_utc: str
    products: int
    encoder_fingerprint: str
    is_current: bool


class IndexInfo(_Strict):
    """An index, and the version of it that is served."""

    name: str
    version: str
    created_utc: str
    products: int
    encoder: str
    encoder_fingerprint: str
    takes_text: bool
    takes_images: bool
    group_field: str | None
    recall: float
    recall_k: int
    factory: str
    columns: dict[str, str]
    without_encoder: str
