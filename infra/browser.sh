# Sourced by test.sh, after setup.sh: `find_browser` looks for the browser of tests/browser and
# installs Debian's chromium where it may. Without one those tests are skipped, and say so.

find_browser() {
    local name
    for name in "${STRATA_BROWSER:-}" chromium chromium-browser google-chrome google-chrome-stable; do
        [ -n "$name" ] && command -v "$name" >/dev/null && return
    done
    # Ubuntu's package of that name only points to a snap, which containers cannot run.
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && grep -qs '^ID=debian' /etc/os-release; then
        say "Installing chromium, for the tests of the page"
        if apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y \
            --no-install-recommends chromium fonts-dejavu-core >/dev/null; then
            return
        fi
    fi
    say "No chromium, and none could be installed: the tests of the page are skipped" \
        "(Debian: sudo apt install chromium)"
}
