"""What is asked for with a function's verbs."""

from __future__ import annotations

from typing import Annotated

import msgspec

from weft.objects.schema import field


class PublishInput(msgspec.Struct):
    description: Annotated[str, field("What is new in the version", max_length=200)] = ""


class InvokeInput(msgspec.Struct):
    """What it is called with comes over the stream. ``qualifier``: a version or an alias, "" for the newest; ``client_context`` is
    handed to the code as it is; ``tail`` asks for the end of what it printed; ``timeout``: the caller's own patience in
    seconds, 0 for the function's. ``later``: it is only taken in, and run when there is room."""

    qualifier: str = ""
    client_context: str = ""
    tail: bool = False
    timeout: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 0.0
    later: bool = False


class FunctionLogsInput(msgspec.Struct):
    """``tail`` last lines first (-1: all), of what was printed in the last ``since`` seconds (0: ever); then on if ``follow``."""

    follow: bool = False
    tail: int = -1
    since: Annotated[float, msgspec.Meta(ge=0)] = 0.0


class MetricsInput(msgspec.Struct):
    pass
