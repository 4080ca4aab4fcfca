#!/usr/bin/env bash
# Builds libchainfed_executorch.so into the folder given, against the executorch wheel of a Python; does nothing where
# it is up to date. Usage: build_shim.sh OUT_FOLDER [PYTHON]; without PYTHON, $CHAINFED_PYTHON or the project's .venv.
set -euo pipefail

module=$(cd "$(dirname "$0")" && pwd)
out=$1
python=${2:-${CHAINFED_PYTHON:-$module/../../.venv/bin/python}}
sources=("$module"/src/main/native/*.cpp)
library=$out/libchainfed_executorch.so

fail() {
    echo "build_shim.sh: $*" >&2
    exit 1
}

command -v g++ >/dev/null || fail "there is no g++; install a C++ compiler."
command -v "$python" >/dev/null || fail "there is no Python at $python; run 'make setup', or set CHAINFED_PYTHON."

# Four lines: the wheel's version, its folder, its runtime's library, and the interpreter's shared library.
found=$("$python" - <<'P'
import glob, importlib.metadata, importlib.util, os, sysconfig
try:
    print(importlib.metadata.version("executorch"))
except importlib.metadata.PackageNotFoundError:
    raise SystemExit(0)
folder = importlib.util.find_spec("executorch").submodule_search_locations[0]
print(folder)
print(*glob.glob(os.path.join(folder, "extension/pybindings/_portable_lib.*.so"))[:1])
print(os.path.join(sysconfig.get_config_var("LIBDIR") or "", sysconfig.get_config_var("INSTSONAME") or ""))
P
) || fail "$python cannot tell where its packages lie."
mapfile -t lines <<<"$found"
version=${lines[0]} wheel=${lines[1]:-} runtime=${lines[2]:-} interpreter=${lines[3]:-}
[[ $version == 1.4.* ]] || fail "$python has executorch '$version', this needs 1.4; run 'make setup'."
[[ -f $runtime ]] || fail "the executorch $version of $python has no _portable_lib; reinstall it."
# Never started: the wheel's library asks for its symbols.
[[ $interpreter == *.so* && -f $interpreter ]] ||
    fail "$python has no shared libpython (looked for $interpreter); install it, or take a Python that has one."

java=${JAVA_HOME:-$(dirname "$(dirname "$(readlink -f "$(command -v javac)")")")}
[[ -f $java/include/jni.h ]] || fail "there is no JDK at $java (its include/jni.h is missing); set JAVA_HOME."

stamp=$(
    printf '%s\n' "${lines[@]}" "$java"
    stat -c '%s %Y' "$runtime" "$interpreter"
    g++ --version | head -n 1
    cat "$0" "${sources[@]}" "$module"/src/main/native/*.h | sha256sum
)
if [[ -f $library && -f $library.stamp && $(<"$library.stamp") == "$stamp" ]]; then
    exit 0
fi

mkdir -p "$out"
rm -f "$library.stamp"
g++ -std=c++17 -O2 -fPIC -shared -fvisibility=hidden -Wall -Wextra -Werror \
    -isystem "$wheel/include" -isystem "$wheel/include/executorch/runtime/core/portable_type/c10" \
    -isystem "$java/include" -isystem "$java/include/linux" -DC10_USING_CUSTOM_GENERATED_MACROS \
    "${sources[@]}" -o "$library" \
    -Wl,-soname,libchainfed_executorch.so -Wl,--no-as-needed "$interpreter" "$runtime" -Wl,--allow-shlib-undefined \
    -Wl,-rpath,"$(dirname "$runtime")" -Wl,-rpath,"$(dirname "$interpreter")" ||
    fail "the compiler failed; the messages above say where."
printf '%s\n' "$stamp" >"$library.stamp"
