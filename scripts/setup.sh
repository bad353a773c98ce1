# Sourced by the other scripts: leaves an up-to-date .venv at the repository root, activated.
#
#   source scripts/setup.sh EXTRA...      e.g. source scripts/setup.sh dev asr
#
# Reused as it is while the project's metadata, the constraints and the extras stay the same.

# Install with uv, which fetches packages side by side. It does not know pip's settings (mirrors,
# folders of wheels), so pip is asked where uv fails.
install_packages() {
    uv pip install --quiet "$@" || {
        echo "setup: uv could not install them; pip tries" >&2
        pip install --quiet "$@"
    }
}

setup_environment() {
    local root extras wanted stamp python
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    extras="$*"
    python="${PYTHON:-python3}"
    "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' || {
        echo "setup: Python 3.10 to 3.13 is needed, $python is $("$python" -V 2>&1)" >&2
        return 1
    }
    stamp="$root/.venv/.echostream-${extras// /-}"
    # The settings of tools, further down in pyproject.toml, install nothing.
    wanted="$({ sed '/^\[tool\.pytest/,$d' "$root/pyproject.toml"
        cat "$root/setup.py" "$root/scripts/constraints.txt" "$root/scripts/setup.sh"; } | cksum)"
    if [ ! -x "$root/.venv/bin/python" ]; then
        echo "setup: creating .venv"
        "$python" -m venv "$root/.venv" || return 1
    fi
    # shellcheck disable=SC1091
    source "$root/.venv/bin/activate"
    # uv leaves compiling to the first import. Where that may not be kept, every process would compile
    # torch anew, for longer than many of them run.
    unset PYTHONDONTWRITEBYTECODE
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        echo "setup: installing packages (a few minutes the first time)"
        # Build tools first: the train extra compiles against the installed torch and must not
        # fetch a second one into an isolated build environment.
        pip install --quiet uv || true
        install_packages "setuptools>=77,<81" wheel || return 1
        case " $extras " in
            *" train "*)
                install_packages --constraint "$root/scripts/constraints.txt" \
                    torch torchaudio "cython<3.1" "numpy>=1.26" || return 1
                install_packages --no-build-isolation \
                    --constraint "$root/scripts/constraints.txt" fairseq-fixed==0.12.3.1 || return 1
                ;;
        esac
        install_packages --no-build-isolation --constraint "$root/scripts/constraints.txt" \
            --editable "$root${extras:+[${extras// /,}]}" || return 1
        echo "$wanted" >"$stamp"
    fi
    cd "$root" || return 1
}

setup_environment "$@"
