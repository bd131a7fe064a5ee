// Fetches first what its settings name, then what earlier starts read, then the rest.

#include <stdlib.h>
#include <string.h>

#include "bindings/prefetch.h"

typedef prefetch_string_t text;
typedef exports_sluice_policy_plan_item_t item;
typedef exports_sluice_policy_plan_list_setting_t settings_list;

// A text that is never freed; what a policy returns may be one, as its instance is thrown away after the call.
static text of(const char *literal) {
  text copy;
  prefetch_string_dup(&copy, literal);
  return copy;
}

// NULL: it was left out. The host has checked names and types by what `describe` says.
static sluice_policy_settings_value_t *value_of(settings_list *settings, const char *name) {
  for (size_t i = 0; i < settings->len; i++) {
    text known = settings->ptr[i].name;
    if (known.len == strlen(name) && memcmp(known.ptr, name, known.len) == 0) return &settings->ptr[i].value;
  }
  return NULL;
}

static prefetch_list_string_t first_paths(settings_list *settings) {
  sluice_policy_settings_value_t *first = value_of(settings, "first");
  return first ? first->val.texts : (prefetch_list_string_t){NULL, 0};
}

void exports_sluice_policy_plan_describe(exports_sluice_policy_plan_about_t *about) {
  sluice_policy_settings_known_setting_t *settings = calloc(2, sizeof(*settings));
  settings[0].name = of("first");
  settings[0].kind = SLUICE_POLICY_SETTINGS_KIND_TEXTS;
  settings[0].help = of("Files, and folders for all below them, in this order; left out: none.");
  settings[1].name = of("bandwidth");
  settings[1].kind = SLUICE_POLICY_SETTINGS_KIND_NUMBER;
  settings[1].help = of("Bytes a second of the rest; left out: the node's own limit.");
  about->name = of("paths-first");
  about->version = of("1.0.0");
  about->summary = of("Fetches first what its settings name.");
  about->settings = (sluice_policy_settings_list_known_setting_t){settings, 2};
}

// True: the settings are good.
bool exports_sluice_policy_plan_check_settings(settings_list *settings,
                                               exports_sluice_policy_plan_list_problem_t *problems) {
  *problems = (exports_sluice_policy_plan_list_problem_t){calloc(2, sizeof(*problems->ptr)), 0};
  prefetch_list_string_t first = first_paths(settings);
  for (size_t i = 0; i < first.len; i++) {
    if (first.ptr[i].len > 0) continue;
    problems->ptr[problems->len++] =
        (exports_sluice_policy_plan_problem_t){of("first"), of("a path is never empty")};
    break;
  }
  sluice_policy_settings_value_t *bandwidth = value_of(settings, "bandwidth");
  if (bandwidth && bandwidth->val.number <= 0) {
    problems->ptr[problems->len++] =
        (exports_sluice_policy_plan_problem_t){of("bandwidth"), of("it must be more than 0")};
  }
  return problems->len == 0;
}

// True: there is a plan; false would be an error. Decide by the image here: `facts` has its name, its labels and its layers.
bool exports_sluice_policy_plan_plan(settings_list *settings, exports_sluice_policy_plan_facts_t *facts,
                                     exports_sluice_policy_plan_profile_t *profile,
                                     exports_sluice_policy_plan_prefetch_plan_t *plan, text *error) {
  (void)facts, (void)error;
  prefetch_list_string_t first = first_paths(settings);
  item *items = calloc(first.len + 1, sizeof(item));
  size_t count = 0;
  for (; count < first.len; count++) {
    items[count].tag = EXPORTS_SLUICE_POLICY_PLAN_ITEM_PATH;
    items[count].val.path = first.ptr[count];
  }
  // All of the profile's chunks. They are known by their numbers, in the order in which starts read them.
  if (profile->chunks > 0) {
    items[count].tag = EXPORTS_SLUICE_POLICY_PLAN_ITEM_CHUNKS;
    items[count++].val.chunks = (prefetch_tuple2_u32_u32_t){0, profile->chunks};
  }
  plan->mode = EXPORTS_SLUICE_POLICY_PLAN_MODE_LISTED_THEN_REST;
  plan->items = (exports_sluice_policy_plan_list_item_t){items, count};
  sluice_policy_settings_value_t *bandwidth = value_of(settings, "bandwidth");
  plan->bandwidth = (prefetch_option_u64_t){bandwidth != NULL, bandwidth ? (uint64_t)bandwidth->val.number : 0};
  plan->reason = of("paths-and-profile");
  return true;
}
