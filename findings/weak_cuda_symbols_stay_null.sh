#!/usr/bin/env bash
# torch 2.11.0 (CUDA build; no GPU needed), glibc's loader, a library with a weak CUDA shim.
#
# A library that should load with CPU and CUDA builds of torch alike declares the CUDA functions of
# torch's stable C interface weak, and links to libtorch_cpu and libc10, which every build has.
#
# Expected: after `import torch` of a CUDA build, libtorch_cuda is in the process, so that loading the
#   library binds the weak symbol.
# Seen: it stays null. `import torch` loads libtorch_cuda as a dependency of a module that Python opens
#   with local visibility, and the loader looks a symbol up in the global scope and in the library's own
#   dependencies only. Linked to libtorch.so as well, which holds no code but needs libtorch_cuda where
#   there is one, the same library binds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check torch==2.11.0 numpy==2.3.5
libraries=$("$python" -c 'import torch, pathlib; print(pathlib.Path(torch.__file__).parent / "lib")')

cat > "$folder/shim.c" <<'C'
#pragma weak aoti_torch_get_current_cuda_stream
extern int aoti_torch_get_current_cuda_stream(int device, void** stream);
/* Something that every build has, so that the library needs libtorch_cpu as a real one does. */
extern int aoti_torch_dtype_float32(void);
int needs_torch(void) { return aoti_torch_dtype_float32(); }
int is_bound(void) { return aoti_torch_get_current_cuda_stream != 0; }
C
build() { cc -shared -fPIC -o "$folder/$1.so" "$folder/shim.c" -L"$libraries" -Wl,--no-as-needed "${@:2}"; }
build plain -ltorch_cpu -lc10
build related -ltorch_cpu -lc10 -ltorch

"$python" - "$folder" <<'PY'
import ctypes
import sys

import torch

folder = sys.argv[1]
assert torch.__version__.startswith("2.11.0"), torch.__version__
assert torch.version.cuda is not None, "this needs the CUDA build"
in_process = any("libtorch_cuda.so" in line for line in open("/proc/self/maps"))
# The one that needs libtorch comes last: it would change nothing for the other, and shows that.
seen = {name: bool(ctypes.CDLL(f"{folder}/{name}.so").is_bound()) for name in ("plain", "related")}
print(f"torch {torch.__version__}; libtorch_cuda is in the process: {in_process}")
print(f"linked to libtorch_cpu and libc10: bound {seen['plain']}; to libtorch as well: {seen['related']}")
sys.exit(0 if in_process and seen == {"plain": False, "related": True} else 1)
PY
