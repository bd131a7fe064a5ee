"""Fetches first what its settings name, then what earlier starts read, then the rest."""

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports.plan import Item, Item_Chunks, Item_Path, Mode, PrefetchPlan, Profile
from wit_world.imports.facts import Facts
from wit_world.imports.settings import About, Kind, KnownSetting, Problem, Setting

FIRST = "Files, and folders for all below them, in this order; left out: none."
BANDWIDTH = "Bytes a second of the rest; left out: the node's own limit."


class Plan(exports.Plan):
    def describe(self) -> About:
        settings = [
            KnownSetting("first", Kind.TEXTS, False, FIRST),
            KnownSetting("bandwidth", Kind.NUMBER, False, BANDWIDTH),
        ]
        return About("paths-first", "1.0.0", "Fetches first what its settings name.", settings)

    def check_settings(self, settings: list[Setting]) -> None:
        values = by_name(settings)
        problems = []
        if "" in values.get("first", []):
            problems.append(Problem("first", "a path is never empty"))
        if values.get("bandwidth", 1) <= 0:
            problems.append(Problem("bandwidth", "it must be more than 0"))
        if problems:
            raise Err(problems)

    # Decide by the image here: `facts` has its name, its labels and its layers.
    def plan(self, settings: list[Setting], facts: Facts, profile: Profile) -> PrefetchPlan:
        values = by_name(settings)
        items: list[Item] = [Item_Path(path) for path in values.get("first", [])]
        # All of the profile's chunks. They are known by their numbers, in the order in which starts read them.
        if profile.chunks > 0:
            items.append(Item_Chunks((0, profile.chunks)))
        return PrefetchPlan(Mode.LISTED_THEN_REST, items, values.get("bandwidth"), "paths-and-profile")


def by_name(settings: list[Setting]) -> dict:
    # The host has checked names and types by what `describe` says.
    return {setting.name: setting.value.value for setting in settings}
