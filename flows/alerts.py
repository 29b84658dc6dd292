"""Tell somebody: a run that failed, crashed, or was stopped by the gate calls a webhook, where one is set up."""

from typing import cast

from prefect import Flow
from prefect.blocks.webhook import Webhook
from prefect.client.schemas import FlowRun, State
from prefect.logging.loggers import flow_run_logger
from prefect.settings import PREFECT_UI_URL

WEBHOOK = "train-vqvae-alerts"  # the name of a Webhook block
GATE_REFUSED = "GateRefused"  # the state's name, and the event's


async def alert(flow: Flow, flow_run: FlowRun, state: State) -> None:
    """Post {"text", "event", "flow_run", "state", "message", "url"}; chat services show "text"."""
    try:
        webhook = cast(Webhook, await Webhook.aload(WEBHOOK))
    except ValueError:  # nobody asked to be told
        return
    event = "gate-refused" if state.name == GATE_REFUSED else f"run-{state.type.value.lower()}"
    url = f"{PREFECT_UI_URL.value()}/runs/flow-run/{flow_run.id}"
    payload = {
        "text": f"{flow.name}/{flow_run.name}: {event}. {state.message} {url}",
        "event": event,
        "flow_run": flow_run.name,
        "state": state.name,
        "message": state.message,
        "url": url,
    }
    response = await webhook.call(payload)
    if response.is_error:
        flow_run_logger(flow_run, flow).warning("the webhook %s answered %s", WEBHOOK, response.status_code)
