"""Refuses images by their tag."""

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports.judge import Decision, Verdict
from wit_world.imports.facts import Facts
from wit_world.imports.settings import About, Kind, KnownSetting, Problem, Setting


class Judge(exports.Judge):
    def describe(self) -> About:
        tags = KnownSetting("tags", Kind.TEXTS, False, "Tags that are refused; left out: `latest` alone.")
        return About("no-latest", "1.0.0", "Refuses images by their tag.", [tags])

    def check_settings(self, settings: list[Setting]) -> None:
        if "" in refused_tags(settings):
            raise Err([Problem("tags", "a tag is never empty")])

    def judge(self, settings: list[Setting], facts: Facts) -> Verdict:
        tag = facts.image.tag
        if tag is None or tag not in refused_tags(settings):
            return Verdict(Decision.ABSTAIN, "", "", [])
        message = f"the tag `{tag}` is refused: name another"
        return Verdict(Decision.REFUSE, "tag-refused", message, [("tag", tag)])


def refused_tags(settings: list[Setting]) -> list[str]:
    # The host has checked names and types by what `describe` says.
    values = {setting.name: setting.value.value for setting in settings}
    return values.get("tags", ["latest"])
