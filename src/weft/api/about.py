"""State of the server: whether it works, and where its gateway is."""

from __future__ import annotations

from weft import __version__
from weft.api.auth.authorise import require_person
from weft.api.capabilities import list_capabilities
from weft.api.context import ApiContext
from weft.api.request.call import Call, json_answer
from weft.api.route import Route
from weft.contracts.driver.function import REGION
from weft.serving.answer import Answer


async def healthz(context: ApiContext, call: Call) -> Answer:
    """Answers only if the store does; ``store_ms`` is how long that took."""
    call.query()
    began = context.clock.elapsed()
    await context.store.get("/project/-/default")
    took = round((context.clock.elapsed() - began) * 1000, 2)
    return json_answer({"status": "ok", "version": __version__, "store_ms": took, "capabilities": list_capabilities()})


async def gateway(context: ApiContext, call: Call) -> Answer:
    require_person(call.actor, "ask where the gateway is")
    call.query()
    functions = context.settings.functions_for(call.host)
    return json_answer(
        {
            "streams": context.settings.gateway_for(call.host),
            "functions": f"https://{functions}" if functions else "",
            "region": REGION,
            "server_name": context.settings.server_name,
        }
    )


ROUTES = (
    Route("GET", "/v1/gateway", gateway, "Where streams connect, and where functions are invoked"),
    Route("GET", "/v1/healthz", healthz, "Whether the server and its store work, and what it can do"),
)
