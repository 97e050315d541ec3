"""What compiled kernels, RoIAlign's work and a step's operators may cost, as recorded.

`PYTHONPATH=.:tests python -m support.compiled_budgets` measures again and prints the three tables;
replace those below by what it prints, in the commit that changes a kernel. Lower is better: numbers
that rise need a reason in the commit's message.
"""

import sys

# The compilers that were recorded; others emit other code.
TRITON, TORCH = "3.9", "2.13"

# Registers, bytes of stack and of shared memory at most; programs per multiprocessor and bytes per
# thread of the widest load and store of the deepest loop at least; instructions of each level at
# most, from the outside in. Recorded with 5% room for instructions, in tens, and registers in
# eights, which is how they are given out.
KERNELS = {
    "sm_80 align 7x7 bf16 nhwc 16x512": {
        "roi_align_forward": (48, 0, 0, 10, 8, 8, (230, 200)),
        "roi_order": (40, 0, 32, 12, 16, 4, (40, 270)),
        "roi_align_mark": (24, 0, 0, 32, 8, 4, (260, 30)),
        "roi_align_mean_backward": (160, 0, 8192, 3, 16, 16, (530, 30, 30, 120, 220)),
    },
    "sm_80 nms 80x2000": {
        "nms_overlap": (56, 0, 128, 9, 4, 4, (530,)),
        "nms_scan": (128, 0, 256, 4, 4, 4, (60, 430, 410)),
    },
    "sm_90 align 7x7 bf16 nhwc 2x500": {
        "roi_align_forward": (56, 0, 0, 9, 8, 8, (240, 200)),
        "roi_order": (48, 0, 32, 10, 8, 4, (80, 330)),
        "roi_align_mark": (32, 0, 0, 32, 8, 4, (280, 30)),
        "roi_align_mean_backward": (128, 0, 8192, 4, 16, 16, (510, 30, 30, 120, 190)),
    },
    "sm_90 align 7x7 fp32 nhwc 2x500": {
        "roi_align_forward": (48, 0, 0, 10, 16, 16, (240, 160)),
        "roi_order": (48, 0, 32, 10, 8, 4, (80, 330)),
        "roi_align_mark": (32, 0, 0, 32, 8, 4, (280, 30)),
        "roi_align_mean_backward": (152, 0, 16384, 3, 16, 16, (460, 30, 20, 120, 350)),
    },
    "sm_90 align 7x7 bf16 nhwc 16x512": {
        "roi_align_forward": (56, 0, 0, 9, 8, 8, (240, 200)),
        "roi_order": (48, 0, 32, 10, 16, 4, (70, 290)),
        "roi_align_mark": (32, 0, 0, 32, 8, 4, (280, 30)),
        "roi_align_mean_backward": (128, 0, 8192, 4, 16, 16, (510, 30, 30, 120, 190)),
    },
    "sm_90 align 14x14 bf16 nhwc 16x128": {
        "roi_align_forward": (56, 0, 0, 9, 16, 16, (230, 30, 180)),
        "roi_order": (48, 0, 32, 10, 16, 4, (70, 290)),
        "roi_align_mark": (32, 0, 0, 32, 8, 4, (280, 30)),
        "roi_align_mean_backward": (128, 0, 8192, 4, 16, 16, (510, 30, 30, 120, 190)),
    },
    "sm_90 align 7x7 fp16 nhwc 16x512": {
        "roi_align_forward": (56, 0, 0, 9, 8, 8, (240, 190)),
        "roi_order": (48, 0, 32, 10, 16, 4, (70, 290)),
        "roi_align_mark": (32, 0, 0, 32, 8, 4, (280, 30)),
        "roi_align_mean_backward": (128, 0, 8192, 4, 16, 16, (580, 30, 30, 120, 190)),
    },
    "sm_90 align 7x7 bf16 nchw 16x512": {
        "roi_align_forward": (48, 0, 1024, 10, 2, 2, (280, 30, 230)),
        "roi_order": (48, 0, 32, 10, 16, 4, (70, 290)),
        "roi_align_mark": (32, 0, 0, 32, 8, 4, (280, 30)),
        "roi_align_mean_backward": (160, 0, 8192, 3, 2, 2, (780, 30, 30, 130, 400)),
    },
    "sm_90 align_max 7x7 bf16 nhwc 16x512": {
        "roi_align_forward": (48, 0, 0, 10, 8, 16, (250, 260)),
        "roi_order": (48, 0, 32, 10, 16, 4, (70, 290)),
        "roi_align_mark": (32, 0, 0, 32, 8, 4, (280, 30)),
        "roi_align_max_backward": (80, 0, 4096, 6, 4, 16, (310, 30, 30, 140, 150, 230)),
    },
    "sm_90 pool 7x7 bf16 nhwc 16x512": {
        "roi_pool_forward": (32, 0, 0, 16, 8, 16, (310, 20, 60)),
        "roi_order": (48, 0, 32, 10, 16, 4, (70, 290)),
        "roi_pool_mark": (24, 0, 0, 32, 8, 4, (310, 30)),
        "roi_pool_backward": (128, 0, 4096, 4, 4, 16, (390, 30, 30, 120, 70, 140)),
    },
    "sm_90 nms 80x2000": {
        "nms_overlap": (56, 0, 128, 9, 4, 4, (540,)),
        "nms_scan": (80, 0, 256, 6, 4, 4, (40, 550, 360)),
    },
    "sm_90 match 16x268569": {
        "matcher_truth": (48, 0, 32, 5, 4, 0, (110, 190)),
        "matcher_label": (72, 0, 0, 3, 4, 8, (220, 200)),
    },
    "sm_90 targets 16x128": {
        "mask_targets": (56, 0, 0, 32, 1, 4, (160, 50, 100)),
    },
    "sm_90 paste 1x100": {
        "mask_paste": (48, 0, 16, 10, 4, 8, (570,)),
    },
    "sm_100 align 7x7 bf16 nhwc 16x512": {
        "roi_align_forward": (48, 0, 0, 10, 8, 8, (240, 170)),
        "roi_order": (48, 0, 32, 10, 16, 4, (70, 290)),
        "roi_align_mark": (32, 0, 0, 32, 8, 4, (270, 40)),
        "roi_align_mean_backward": (128, 0, 6144, 4, 16, 16, (650, 40, 30, 130, 240, 10)),
    },
    "sm_100 nms 80x2000": {
        "nms_overlap": (56, 0, 128, 9, 4, 4, (520,)),
        "nms_scan": (80, 0, 256, 6, 4, 4, (40, 550, 370)),
    },
}

# Millions of warp instructions of RoIAlign at most, recorded with 3% room.
WORK = {
    ("align 7x7 bf16 nhwc 2x500", "forward"): 69.3,
    ("align 7x7 bf16 nhwc 2x500", "mark"): 0.3,
    ("align 7x7 bf16 nhwc 2x500", "backward"): 46.7,
    ("align 7x7 fp32 nhwc 2x500", "forward"): 60.1,
    ("align 7x7 fp32 nhwc 2x500", "mark"): 0.3,
    ("align 7x7 fp32 nhwc 2x500", "backward"): 125.8,
    ("align 7x7 bf16 nhwc 16x512", "forward"): 568.0,
    ("align 7x7 bf16 nhwc 16x512", "mark"): 2.6,
    ("align 7x7 bf16 nhwc 16x512", "backward"): 380.0,
    ("align 14x14 bf16 nhwc 16x128", "forward"): 429.0,
    ("align 14x14 bf16 nhwc 16x128", "mark"): 0.7,
    ("align 14x14 bf16 nhwc 16x128", "backward"): 205.4,
}

# Operators and estimated launches at most.
OPERATORS = {
    "training_step": (1388, 1570),
    "detection": (566, 650),
}

# Kernels that do not reach 16 bytes per thread where channels are contiguous, and why.
NARROW = {
    "roi_align_forward": "a thread has 4 channels: 8 bytes in 16-bit types, unless bins are 14x14",
    "roi_align_max_backward": "a thread loads one gradient, 2 bytes, and the index of its sample",
    "roi_pool_forward": "a thread has 4 channels, as in RoIAlign",
    "roi_pool_backward": "a thread loads one gradient, 2 bytes, and the index of its maximum",
}


def kernel(row):
    """Return the entry of KERNELS that this code just fits."""
    levels = tuple(-(-21 * count // 200) * 10 for count in row.levels)
    registers = -(-row.registers // 8) * 8
    return registers, row.stack, row.shared, row.programs, row.load, row.store, levels


def key(row):
    """Return the keys of KERNELS under which a row stands: chip and case, and kernel."""
    return f"sm_{row.chip} {row.case}", row.kernel.strip("_").removesuffix("_kernel")


def merged(a, b):
    """Return the entry that both fit."""
    levels = tuple(map(max, a[6], b[6]))
    return *map(max, a[:3], b[:3]), *map(min, a[3:6], b[3:6]), levels


def record():
    """Measure and print KERNELS, WORK and OPERATORS."""
    from accelerated.experiments import compiled, compiled_launches, compiled_step, compiled_visits

    rows = compiled_launches.compile_all(compiled_launches.selected())
    kernels = {}
    for row in rows:
        case, name = key(row)
        entry = kernel(row)
        of_case = kernels.setdefault(case, {})
        of_case[name] = merged(of_case[name], entry) if name in of_case else entry
    print("KERNELS = {")
    for case, of_case in kernels.items():
        print(f'    "{case}": {{')
        for name, entry in of_case.items():
            print(f'        "{name}": {entry},')
        print("    },")
    print("}\n\nWORK = {")
    for work in compiled_visits.model(compiled_launches.WORKLOADS, rows):
        print(f'    ("{work.case}", "{work.part}"): {round(1.03e-6 * work.ours, 1)},')
    print("}\n\nOPERATORS = {")
    step = compiled_step.training_step(compiled.IMAGES)
    for name, listed in (("training_step", step), ("detection", compiled_step.detection(1))):
        print(f'    "{name}": ({len(listed)}, {sum(x.launches for x in listed)}),')
    print("}")


if __name__ == "__main__":
    sys.exit(record())
