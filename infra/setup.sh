# Sourced by quickstart.sh and test.sh, from the repository's root: `setup EXTRA` makes .venv and
# installs Strata with that extra into it. It does nothing when that has been done already.

say() { printf '\033[1m==> %s\033[0m\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

find_python() {
    local python
    for python in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    die "Strata needs Python 3.11 or newer, and none was found (${PYTHON:-python3}:" \
        "$(${PYTHON:-python3} --version 2>&1 || true)). On Debian and Ubuntu: apt install python3"
}

show_last_line() {
    local line
    if [ ! -t 1 ]; then
        cat >/dev/null
        return
    fi
    while IFS= read -r line; do
        printf '\r\033[K  %.*s' $(($(tput cols 2>/dev/null || echo 80) - 4)) "$line"
    done
    printf '\r\033[K'
}

setup() {
    local extra=$1 python stamp
    stamp=".venv/strata-$extra-$(cat pyproject.toml infra/constraints.txt | cksum | tr ' ' -)"
    [ -e "$stamp" ] && return
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        python=$(find_python)
        if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            # Debian and Ubuntu ship Python without what makes virtual environments.
            if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
                say "Installing python3-venv (Debian keeps it in a package of its own)"
                apt-get update -qq && apt-get install -qq -y python3-venv >/dev/null
            else
                die "$python cannot make virtual environments. Run: sudo apt install python3-venv"
            fi
        fi
        say "Making a virtual environment in .venv with $("$python" --version)"
        "$python" -m venv --clear .venv
    fi
    say "Installing Strata and its dependencies into .venv (some minutes the first time)"
    # pip's own lines, each over the one before: a person sees that something is going on
    .venv/bin/python -m pip install --disable-pip-version-check --progress-bar off \
        -c infra/constraints.txt -e ".[$extra]" 2>&1 | tee .venv/install.log | show_last_line ||
        { grep -v ' already satisfied: ' .venv/install.log | tail -n 20 >&2
          die "the installation failed; .venv/install.log has all of it"; }
    touch "$stamp"
}
