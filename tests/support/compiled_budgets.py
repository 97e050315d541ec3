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
        "roi_align_forward": (64, 0, 0, 8, 16, 16, (230, 30, 270)),
        "roi_order": (40, 0, 32, 12, 8, 4, (40, 300)),
        "roi_align_mark": (24, 0, 0, 32, 8, 4, (260, 30)),
        "roi_align_mean_backward": (168, 40, 12288, 3, 16, 16, (820, 30, 30, 160, 290)),
    },
    "sm_80 nms 80x2000": {
        "nms_overlap": (56, 0, 128, 9, 4, 4, (540,)),
        "nms_scan": (96, 0, 256, 5, 4, 4, (60, 470, 510)),
    },
    "sm_90 align 7x7 bf16 nhwc 2x500": {
        "roi_align_forward": (72, 0, 0, 7, 16, 16, (250, 30, 270)),
        "roi_order": (48, 0, 32, 10, 8, 4, (80, 330)),
        "roi_align_mark": (32, 0, 0, 32, 8, 4, (280, 30)),
        "roi_align_mean_backward": (168, 16, 16384, 3, 16, 16, (780, 30, 30, 150, 220)),
    },
    "sm_90 align 7x7 fp32 nhwc 2x500": {
        "roi_align_forward": (72, 0, 0, 7, 16, 16, (270, 30, 260)),
        "roi_order": (48, 0, 32, 10, 8, 4, (80, 330)),
        "roi_align_mark": (32, 0, 0, 32, 8, 4, (280, 30)),
        "roi_align_mean_backward": (168, 16, 32768, 3, 16, 16, (640, 30, 30, 140, 550)),
    },
    "sm_90 align 7x7 bf16 nhwc 16x512": {
        "roi_align_forward": (72, 0, 0, 7, 16, 16, (250, 30, 270)),
        "roi_order": (48, 0, 32, 10, 8, 4, (80, 330)),
        "roi_align_mark": (32, 0, 0, 32, 8, 4, (280, 30)),
        "roi_align_mean_backward": (168, 16, 16384, 3, 16, 16, (780, 30, 30, 150, 220)),
    },
    "sm_90 align 14x14 bf16 nhwc 16x128": {
        "roi_align_forward": (88, 0, 0, 5, 16, 16, (310, 30, 530)),
        "roi_order": (48, 0, 32, 10, 8, 4, (80, 330)),
        "roi_align_mark": (32, 0, 0, 32, 8, 4, (280, 30)),
        "roi_align_mean_backward": (168, 16, 16384, 3, 16, 16, (780, 30, 30, 150, 220)),
    },
    "sm_90 align 7x7 fp16 nhwc 16x512": {
        "roi_align_forward": (64, 0, 0, 8, 16, 16, (250, 30, 240)),
        "roi_order": (48, 0, 32, 10, 8, 4, (80, 330)),
        "roi_align_mark": (32, 0, 0, 32, 8, 4, (280, 30)),
        "roi_align_mean_backward": (168, 32, 16384, 3, 16, 16, (920, 30, 30, 150, 230)),
    },
    "sm_90 align 7x7 bf16 nchw 16x512": {
        "roi_align_forward": (80, 0, 4096, 6, 2, 2, (400, 30, 540)),
        "roi_order": (48, 0, 32, 10, 8, 4, (80, 330)),
        "roi_align_mark": (32, 0, 0, 32, 8, 4, (280, 30)),
        "roi_align_mean_backward": (168, 48, 12288, 3, 16, 2, (1290, 30, 30, 150, 220)),
    },
    "sm_90 align_max 7x7 bf16 nhwc 16x512": {
        "roi_align_forward": (104, 0, 4096, 4, 16, 16, (320, 40, 430)),
        "roi_order": (48, 0, 32, 10, 8, 4, (80, 330)),
        "roi_align_mark": (32, 0, 0, 32, 8, 4, (280, 30)),
        "roi_align_max_backward": (80, 0, 4096, 6, 4, 16, (310, 30, 30, 140, 150, 230)),
    },
    "sm_90 pool 7x7 bf16 nhwc 16x512": {
        "roi_pool_forward": (32, 0, 0, 16, 8, 16, (310, 20, 60)),
        "roi_order": (48, 0, 32, 10, 8, 4, (80, 330)),
        "roi_pool_mark": (24, 0, 0, 32, 8, 4, (310, 30)),
        "roi_pool_backward": (128, 0, 4096, 4, 4, 16, (390, 30, 30, 120, 70, 140)),
    },
    "sm_90 nms 80x2000": {
        "nms_overlap": (56, 0, 128, 9, 4, 4, (550,)),
        "nms_scan": (80, 0, 256, 6, 4, 4, (40, 580, 360)),
    },
    "sm_90 match 16x268569": {
        "matcher_truth": (48, 0, 32, 5, 4, 0, (110, 190)),
        "matcher_label": (72, 0, 0, 3, 4, 8, (220, 200)),
    },
    "sm_90 targets d2 16x128": {
        "mask_targets": (56, 0, 0, 32, 1, 4, (170, 50, 100)),
    },
    "sm_90 paste d2 1x100": {
        "mask_paste": (48, 0, 16, 10, 4, 8, (580,)),
    },
    "sm_90 polygons d2 16x128": {
        "polygon_targets": (144, 0, 512, 3, 8, 16, (230, 30, 1950)),
    },
    "sm_100 align 7x7 bf16 nhwc 16x512": {
        "roi_align_forward": (64, 0, 0, 8, 16, 16, (230, 30, 250)),
        "roi_order": (48, 0, 32, 10, 8, 4, (80, 330)),
        "roi_align_mark": (32, 0, 0, 32, 8, 4, (270, 40)),
        "roi_align_mean_backward": (168, 24, 10240, 3, 16, 16, (940, 40, 30, 160, 280, 10)),
    },
    "sm_100 nms 80x2000": {
        "nms_overlap": (56, 0, 128, 9, 4, 4, (520,)),
        "nms_scan": (80, 0, 256, 6, 4, 4, (40, 580, 370)),
    },
}

# Millions of warp instructions of RoIAlign at most, recorded with 3% room.
WORK = {
    ("align 7x7 bf16 nhwc 2x500", "forward"): 37.4,
    ("align 7x7 bf16 nhwc 2x500", "mark"): 0.3,
    ("align 7x7 bf16 nhwc 2x500", "backward"): 30.2,
    ("align 7x7 fp32 nhwc 2x500", "forward"): 37.2,
    ("align 7x7 fp32 nhwc 2x500", "mark"): 0.3,
    ("align 7x7 fp32 nhwc 2x500", "backward"): 92.1,
    ("align 7x7 bf16 nhwc 16x512", "forward"): 306.4,
    ("align 7x7 bf16 nhwc 16x512", "mark"): 2.6,
    ("align 7x7 bf16 nhwc 16x512", "backward"): 245.4,
    ("align 14x14 bf16 nhwc 16x128", "forward"): 276.9,
    ("align 14x14 bf16 nhwc 16x128", "mark"): 0.7,
    ("align 14x14 bf16 nhwc 16x128", "backward"): 138.7,
}

# Operators and estimated launches at most.
OPERATORS = {
    "training_step": (1092, 1271),
    "detection": (464, 547),
}

# Kernels that do not reach 16 bytes per thread where channels are contiguous, and why.
NARROW = {
    "roi_align_max_backward": "a thread loads one gradient, 2 bytes, and the index of its sample",
    "roi_pool_forward": "a thread has 4 channels: 8 bytes in 16-bit types",
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
