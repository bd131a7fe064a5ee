// Refuses images by their tag.

export const judge = {
  describe() {
    const help = "Tags that are refused; left out: `latest` alone.";
    const tags = { name: "tags", kind: "texts", required: false, help };
    return { name: "no-latest", version: "1.0.0", summary: "Refuses images by their tag.", settings: [tags] };
  },

  checkSettings(settings) {
    if (refusedTags(settings).includes("")) {
      throw [{ setting: "tags", message: "a tag is never empty" }];
    }
  },

  judge(settings, facts) {
    const tag = facts.image.tag;
    if (tag === undefined || !refusedTags(settings).includes(tag)) {
      return { decision: "abstain", reason: "", message: "", details: [] };
    }
    const message = `the tag \`${tag}\` is refused: name another`;
    return { decision: "refuse", reason: "tag-refused", message, details: [["tag", tag]] };
  },
};

// The host has checked names and types by what `describe` says.
function refusedTags(settings) {
  return settings.find((setting) => setting.name === "tags")?.value.val ?? ["latest"];
}
