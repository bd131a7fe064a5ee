# Unpacks packages of another Debian release into .tools: from the mirror that this machine's apt uses, and checked by it. To be sourced,
# with the checkout as working folder.

scratch=
trap 'rm -rf "$scratch"' EXIT

fetch() { # RELEASE FOLDER PROGRAM PACKAGE...
  local release=$1 folder=$2 program=$3 mirror
  shift 3
  [ -x ".tools/$folder/usr/$program" ] && return
  echo "fetching $* of Debian's $release into .tools"
  mirror=$(apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' | awk '$1 == "Debian" { print $2; exit }')
  [ -n "$mirror" ] || { echo "this machine's apt knows no mirror of Debian" >&2; exit 1; }
  scratch=$(mktemp -d)
  chmod 755 "$scratch" # apt downloads as a user of its own
  mkdir -p "$scratch"/{lists,archives,packages}/partial
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $release main" >"$scratch/sources.list"
  local apt=(apt-get -qq -o Dir::Etc::SourceList="$scratch/sources.list" -o Dir::Etc::SourceParts=- -o Dir::State::Lists="$scratch/lists"
    -o Dir::Cache="$scratch" -o Dir::Cache::Archives="$scratch/archives" -o APT::Sandbox::User=root
    -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false -o Acquire::Retries=3)
  "${apt[@]}" update
  (cd "$scratch/packages" && "${apt[@]}" download "$@")
  for package in "$scratch"/packages/*.deb; do dpkg-deb -x "$package" "$scratch/root"; done
  # Whole or not at all, so that what is there is complete.
  mkdir -p .tools
  rm -rf ".tools/$folder.part" ".tools/$folder"
  mv "$scratch/root" ".tools/$folder.part"
  mv ".tools/$folder.part" ".tools/$folder"
  rm -rf "$scratch"
}
