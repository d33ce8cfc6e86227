"""A made-up shop: users who want an order cancelled, sent elsewhere or explained, sometimes against the policy."""

import random
from typing import Any

from glmcore.envs.protocol import Item

NUM_TASKS = 400
POLICY = (
    "You work for a shop. Look an order up before you speak about it. Only orders that are pending may be cancelled or "
    "sent to another address; say so if one is not. Do nothing that the customer has not asked for."
)
CHANGES = [
    {"table": "orders", "field": "status", "from": ["pending"], "to": ["cancelled"]},
    {"table": "orders", "field": "address"},
]
_GOODS = ("lamp", "chair", "kettle", "clock", "radio", "mirror", "carpet", "vase")
_STREETS = ("Mill Lane", "High Street", "Park Road", "Station Road", "Church Hill", "River Walk")


def shop_tasks() -> list[Item]:
    """The same tasks every time, as `glmcore.envs.service` takes them."""
    return [_task(number) for number in range(NUM_TASKS)]


def _task(number: int) -> Item:
    draw = random.Random(f"shop {number}")
    orders = {str(draw.randrange(1_000, 10_000)): _order(draw) for _ in range(6)}
    key = draw.choice(list(orders))
    order, wish = orders[key], draw.choice(("cancel", "move", "ask"))
    place = f"{draw.randrange(1, 99)} {draw.choice(_STREETS)}"
    wishes = {
        "cancel": f"Please cancel my order {key}.",
        "move": f"Please send my order {key} to {place} instead.",
        "ask": f"What is in my order {key}, and has it been sent?",
    }
    actions: list[dict[str, Any]] = []
    outputs = [order["goods"], order["status"]] if wish == "ask" else []
    if wish != "ask" and order["status"] == "pending":
        change = {"field": "status", "value": "cancelled"} if wish == "cancel" else {"field": "address", "value": place}
        actions = [{"table": "orders", "id": key, **change}]
    elif wish != "ask":
        outputs = [order["status"]]
    data = {
        "policy": POLICY,
        "database": {"orders": orders},
        "changes": CHANGES,
        "user": [wishes[wish], "Thank you, that is all."],
        "actions": actions,
        "outputs": outputs,
    }
    return Item(f"shop/{number}", data)


def _order(draw: random.Random) -> dict[str, Any]:
    return {
        "goods": draw.choice(_GOODS),
        "status": draw.choice(("pending", "pending", "shipped", "delivered")),
        "address": f"{draw.randrange(1, 99)} {draw.choice(_STREETS)}",
    }
