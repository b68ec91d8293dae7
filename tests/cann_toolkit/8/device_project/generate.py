"""Launch functions and their headers, from preprocessed kernels: generate.py STUB HEADERS FILES"""

import re
import sys
from pathlib import Path

KERNEL = re.compile(r'extern\s+"C"\s+void\s+(\w+)\s*\(([^)]*)\)\s*\{')
STRUCT = re.compile(r"^struct\s+(\w+)\s*\{[^}]*\};", re.M)
HEADER = """#ifndef HEADER_ACLRTLAUNCH_{upper}_H
#define HEADER_ACLRTLAUNCH_{upper}_H
#include "acl/acl_base.h"
#ifndef ACLRT_LAUNCH_KERNEL
#define ACLRT_LAUNCH_KERNEL(kernel_func) aclrtlaunch_##kernel_func
#endif
{signature};
#endif
"""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)


def launch_function(name: str, parameters: list[list[str]], structs: dict[str, str]) -> list[str]:
    """The header's signature and the stub's text."""
    # global memory as void*, a struct by pointer
    host = [[f"{t}*" if t in structs else "void*" if "*" in t else t, n] for t, n in parameters]
    taken = ["uint32_t numBlocks", "aclrtStream stream", *(f"{t} {n}" for t, n in host)]
    signature = f'extern "C" uint32_t aclrtlaunch_{name}({", ".join(taken)})'
    members = [
        (f"{t}" if t in structs else h[0], n) for (t, n), h in zip(parameters, host, strict=True)
    ]
    members += [("void*", "overflow")]
    lines = [f'extern "C" void {name}({", ".join(t for t, _ in parameters)});', signature, "{"]
    lines += ["    struct {"]
    lines += [f"        alignas((alignof({t}) + 3) / 4 * 4) {t} {n};" for t, n in members]
    lines += ["    } args;", "    AllocAscendMemDevice(&args.overflow, 8);"]
    for t, n in parameters:
        copy = f"memcpy(&args.{n}, {n}, sizeof(args.{n}))" if t in structs else f"args.{n} = {n}"
        lines += [f"    {copy};"]
    kernel = f'Device<{name}>::Named("{name}")'
    lines += [
        f"    const uint32_t status = LaunchAscendKernel({kernel}, numBlocks, &args, "
        "sizeof(args), stream);",
        "    FreeAscendMemDevice(args.overflow);",
        "    return status;",
        "}",
    ]
    return [signature, "\n".join(lines)]


def main(stub: Path, headers: Path, files: list[Path]) -> None:
    structs: dict[str, str] = {}
    stubs = []
    for file in files:
        text = re.sub(r"^#.*$", "", file.read_text(), flags=re.M)
        structs |= {found[1]: found[0] for found in STRUCT.finditer(text)}
        for name, taken in KERNEL.findall(text):
            parameters = [p.replace("*", "* ").rsplit(maxsplit=1) for p in taken.split(",")]
            parameters = [["".join(t.split()), n] for t, n in parameters]
            signature, function = launch_function(name, parameters, structs)
            write(
                headers / f"aclrtlaunch_{name}.h",
                HEADER.format(upper=name.upper(), signature=signature),
            )
            stubs.append(function)
    used = [text for name, text in structs.items() if any(f"{name}*" in s for s in stubs)]
    includes = ["#include <string.h>", '#include "acl/acl.h"', '#include "ascendc_runtime.h"']
    write(stub / "host_stub.cpp", "\n".join([*includes, *used, *stubs, ""]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]])
