//! Wants the registry near the nodes: in their region, or in an area of several regions that contains it.
//!
//! Bytes that come from far away make an import slow, and cost money. Registries on an allow-list may be anywhere.

use sluice_policy::{
    About, Eligibility, Facts, Kind, Problem, Settings, Verdict, about, abstain, accept, known, problem,
    refuse,
};

struct RegistryRegion;

impl Eligibility for RegistryRegion {
    fn about() -> About {
        let settings = [
            known("region", Kind::Text, "Where the nodes are; without it, what the asker says."),
            known(
                "areas",
                Kind::Groups,
                "Areas of several regions, and the regions that each contains: { europe = [\"eu-west-1\"] }.",
            ),
            known(
                "registries",
                Kind::Groups,
                "Regions or areas, and the registries that are there: { europe = [\"registry.example\"] }.",
            ),
            known(
                "allow",
                Kind::Texts,
                "Registries that may be anywhere: host, or host/repository and all below it.",
            ),
            known(
                "allow-unknown",
                Kind::Truth,
                "Take images of registries whose place nobody knows; without it they are refused.",
            ),
        ];
        about(
            "registry-region",
            "1.0.0",
            "Wants the registry in the nodes' region, or in an area that contains it.",
            settings,
        )
    }

    fn check(settings: &Settings) -> Vec<Problem> {
        let empty = |(area, regions): &(String, Vec<String>)| regions.is_empty().then(|| area.clone());
        let areas = settings.groups("areas").iter().filter_map(empty);
        let mut problems: Vec<Problem> =
            areas.map(|area| problem("areas", format!("{area} contains no region"))).collect();
        if settings.text("region") == Some("") {
            problems.push(problem("region", "it is empty: leave it out instead"));
        }
        problems
    }

    fn judge(settings: &Settings, facts: &Facts) -> Result<Verdict, String> {
        let image = &facts.image;
        if image.registry.is_empty() {
            // A local image has no way to travel.
            return Ok(abstain());
        }
        if settings
            .texts("allow")
            .iter()
            .any(|allowed| stands_below(&image.registry, &image.repository, allowed))
        {
            return Ok(accept());
        }
        let Some(wanted) = settings.text("region").or(facts.asker.region.as_deref()) else {
            return Ok(refuse("region-unknown", "nobody said which region the nodes are in"));
        };
        match place_of(settings, facts) {
            None if settings.truth("allow-unknown") => Ok(abstain()),
            None => Ok(refuse(
                "registry-region-unknown",
                format!("nobody said which region {} is in; the nodes are in {wanted}", image.registry),
            )),
            Some(place) if place == wanted || contains(settings, place, wanted) => Ok(accept()),
            Some(place) => {
                let message = format!("{} is in {place}, the nodes are in {wanted}", image.registry);
                Ok(refuse("region-mismatch", message)
                    .detail("registry-region", place)
                    .detail("region", wanted))
            }
        }
    }
}

/// The region or area of the image's registry: as the settings say, else as the host knows.
fn place_of<'a>(settings: &'a Settings, facts: &'a Facts) -> Option<&'a str> {
    let here = |registries: &[String]| registries.contains(&facts.image.registry);
    let said = settings.groups("registries").iter().find(|(_, registries)| here(registries));
    said.map(|(place, _)| place.as_str()).or(facts.registry.region.as_deref())
}

fn contains(settings: &Settings, area: &str, region: &str) -> bool {
    let groups = settings.groups("areas").iter();
    groups.filter(|(name, _)| name == area).any(|(_, regions)| regions.iter().any(|member| member == region))
}

/// Whole parts of a path only: `host/team` is not `host/teams`.
fn stands_below(registry: &str, repository: &str, allowed: &str) -> bool {
    let name = format!("{registry}/{repository}");
    name.strip_prefix(allowed)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || allowed.ends_with('/'))
}

sluice_policy::eligibility!(RegistryRegion);
