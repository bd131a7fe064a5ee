// Fetches first what its settings name, then what earlier starts read, then the rest.

export const plan = {
  describe() {
    const first = "Files, and folders for all below them, in this order; left out: none.";
    const bandwidth = "Bytes a second of the rest; left out: the node's own limit.";
    const settings = [
      { name: "first", kind: "texts", required: false, help: first },
      { name: "bandwidth", kind: "number", required: false, help: bandwidth },
    ];
    return { name: "paths-first", version: "1.0.0", summary: "Fetches first what its settings name.", settings };
  },

  checkSettings(settings) {
    const problems = [];
    if ((valueOf(settings, "first") ?? []).includes("")) {
      problems.push({ setting: "first", message: "a path is never empty" });
    }
    if (valueOf(settings, "bandwidth") <= 0n) {
      problems.push({ setting: "bandwidth", message: "it must be more than 0" });
    }
    if (problems.length > 0) throw problems;
  },

  // Decide by the image here: `facts` has its name, its labels and its layers.
  plan(settings, facts, profile) {
    const items = (valueOf(settings, "first") ?? []).map((path) => ({ tag: "path", val: path }));
    // All of the profile's chunks. They are known by their numbers, in the order in which starts read them.
    if (profile.chunks > 0) items.push({ tag: "chunks", val: [0, profile.chunks] });
    const bandwidth = valueOf(settings, "bandwidth");
    return { mode: "listed-then-rest", items, bandwidth, reason: "paths-and-profile" };
  },
};

// The host has checked names and types by what `describe` says. Numbers are of the type BigInt.
function valueOf(settings, name) {
  return settings.find((setting) => setting.name === name)?.value.val;
}
