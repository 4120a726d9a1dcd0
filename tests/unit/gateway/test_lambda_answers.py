"""Errors of each family reach callers with a status of their family, also under a reason that Lambda doesn't have."""

from __future__ import annotations

import pytest

from weft.gateway.lambda_api.answers import type_of
from weft.objects.errors import (
    Forbidden,
    IllegalTransition,
    InUse,
    InvalidInput,
    NotAuthenticated,
    NotFound,
    TooLarge,
    Unavailable,
    WeftError,
)


@pytest.mark.parametrize(
    ("family", "status"),
    [
        (InvalidInput, 400),
        (NotAuthenticated, 403),
        (Forbidden, 403),
        (NotFound, 404),
        (InUse, 409),
        (IllegalTransition, 409),
        (TooLarge, 413),
        (Unavailable, 503),
        (WeftError, 500),
    ],
)
def test_an_unknown_reason_has_the_status_of_its_family(family: type[WeftError], status: int) -> None:
    assert type_of(family("no", reason="somethingNew"))[0] == status
