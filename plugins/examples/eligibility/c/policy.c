// Refuses images by their tag.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bindings/eligibility.h"

typedef eligibility_string_t text;

static bool same(text a, text b) {
  return a.len == b.len && memcmp(a.ptr, b.ptr, a.len) == 0;
}

// A text that is never freed; what a policy returns may be one, as its instance is thrown away after the call.
static text of(const char *literal) {
  text copy;
  eligibility_string_dup(&copy, literal);
  return copy;
}

// The setting `tags`, or else `latest` alone. The host has checked names and types by what `describe` says.
static eligibility_list_string_t refused_tags(exports_sluice_policy_judge_list_setting_t *settings) {
  for (size_t i = 0; i < settings->len; i++) {
    if (same(settings->ptr[i].name, of("tags"))) return settings->ptr[i].value.val.texts;
  }
  text *latest = malloc(sizeof(text));
  *latest = of("latest");
  return (eligibility_list_string_t){latest, 1};
}

static bool contains(eligibility_list_string_t list, text wanted) {
  for (size_t i = 0; i < list.len; i++) {
    if (same(list.ptr[i], wanted)) return true;
  }
  return false;
}

void exports_sluice_policy_judge_describe(exports_sluice_policy_judge_about_t *about) {
  sluice_policy_settings_known_setting_t *tags = malloc(sizeof(*tags));
  tags->name = of("tags");
  tags->kind = SLUICE_POLICY_SETTINGS_KIND_TEXTS;
  tags->required = false;
  tags->help = of("Tags that are refused; left out: `latest` alone.");
  about->name = of("no-latest");
  about->version = of("1.0.0");
  about->summary = of("Refuses images by their tag.");
  about->settings = (sluice_policy_settings_list_known_setting_t){tags, 1};
}

// True: the settings are good.
bool exports_sluice_policy_judge_check_settings(exports_sluice_policy_judge_list_setting_t *settings,
                                                exports_sluice_policy_judge_list_problem_t *problems) {
  if (!contains(refused_tags(settings), of(""))) return true;
  exports_sluice_policy_judge_problem_t *problem = malloc(sizeof(*problem));
  *problem = (exports_sluice_policy_judge_problem_t){of("tags"), of("a tag is never empty")};
  *problems = (exports_sluice_policy_judge_list_problem_t){problem, 1};
  return false;
}

// True: there is a verdict; false would be an error.
bool exports_sluice_policy_judge_judge(exports_sluice_policy_judge_list_setting_t *settings,
                                       exports_sluice_policy_judge_facts_t *facts,
                                       exports_sluice_policy_judge_verdict_t *verdict, text *error) {
  (void)error;
  *verdict = (exports_sluice_policy_judge_verdict_t){.decision = EXPORTS_SLUICE_POLICY_JUDGE_DECISION_ABSTAIN};
  eligibility_option_string_t tag = facts->image.tag;
  if (!tag.is_some || !contains(refused_tags(settings), tag.val)) return true;
  char message[256];
  snprintf(message, sizeof(message), "the tag `%.*s` is refused: name another", (int)tag.val.len, tag.val.ptr);
  exports_sluice_policy_judge_pair_t *detail = malloc(sizeof(*detail));
  *detail = (exports_sluice_policy_judge_pair_t){of("tag"), tag.val};
  verdict->decision = EXPORTS_SLUICE_POLICY_JUDGE_DECISION_REFUSE;
  verdict->reason = of("tag-refused");
  verdict->message = of(message);
  verdict->details = (exports_sluice_policy_judge_list_pair_t){detail, 1};
  return true;
}
