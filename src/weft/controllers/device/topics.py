"""Whether the topics of a function can have a message: of devices and properties that there are, at a node of theirs. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from weft.kinds.device_model import DeviceModelSpec
from weft.kinds.fields.device.affordance import ANY, Topic, read_topic
from weft.objects.envelope import Condition
from weft.objects.errors import InvalidInput
from weft.objects.schema import suggest

MOST_SAID = 4  # topics in its message
TOO_MANY = "tooMany"  # the reason of a function that gateways don't hear of


def plan_topics(
    topics: Sequence[str],
    project: str,
    devices: Mapping[str, str],
    models: Mapping[str, DeviceModelSpec],
    *,
    is_taken: bool,
    too_many: str,
    now: float,
) -> Condition:
    """The condition. ``devices``: by name, of those that topics name and that there are, each with its device model;
    ``is_taken``: a node takes devices of the project; ``too_many``: why no message of any topic comes, "" if some may."""
    if too_many:
        return Condition("TopicsFit", "False", TOO_MANY, too_many, now)
    if not is_taken:
        words = f"no node takes devices of project {project}; an administrator: weft node set NODE --devices-project {project}"
        return Condition("TopicsFit", "False", "noGateway", words, now)
    problems = []
    for text in topics:
        try:
            topic = read_topic(text, "spec.topics")
        except InvalidInput:
            continue  # of a newer server
        if problem := _find_problem(topic, devices, models):
            problems.append(f"{text}: {problem}")
    if not problems:
        return Condition("TopicsFit", "True", "fit", "", now)
    more = f"; and {len(problems) - MOST_SAID} more" if len(problems) > MOST_SAID else ""
    return Condition("TopicsFit", "False", "nothingSends", "; ".join(problems[:MOST_SAID]) + more, now)


def list_named(topics: Sequence[str]) -> set[str]:
    """The devices that topics name."""
    words = (text.split("/") for text in topics)
    return {one[2] for one in words if len(one) > 3 and one[2] != ANY}


def _find_problem(topic: Topic, devices: Mapping[str, str], models: Mapping[str, DeviceModelSpec]) -> str:
    if topic.device != ANY and topic.device not in devices:
        return f"there is no device {topic.device}"
    if topic.property in ("", ANY):
        return ""
    of = list(models.values())
    if topic.device != ANY:
        if (model := models.get(devices[topic.device])) is None:
            return ""  # the device itself says that it has none
        of = [model]
    return _find_absent(topic.property, [name for one in of for name in one.properties])


def _find_absent(name: str, known: Collection[str]) -> str:
    if name in known:
        return ""
    meant = suggest(name, sorted(set(known)))
    return f"no device model there has a property {name}" + (f"; did you mean {meant}?" if meant else "")
