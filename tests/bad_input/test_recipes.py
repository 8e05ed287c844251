"""Recipes with one bad setting, and files that are no recipes."""

from collections.abc import Callable
from pathlib import Path

import pytest

Refused = Callable[..., None]
LONG = "x" * 300

SETTINGS = [
    ("model.preprocess.scale=1/0", "model.preprocess.scale: 1/0 is not a finite number"),
    ("model.preprocess.scale=.inf", "model.preprocess.scale: the number is infinite, or larger than"),
    ("model.preprocess.scale=.nan", "model.preprocess.scale: NaN is not a number"),
    ("model.preprocess.scale=0", "model.preprocess.scale: a scale of 0 makes all samples equal"),
    ("model.preprocess.scale=true", "model.preprocess.scale: true is not a number"),
    ("model.preprocess.scale=1/x", "model.preprocess.scale: Invalid literal for Fraction: '1/x'"),
    ("model.preprocess.scale=1e400", "model.preprocess.scale: input should be a finite number (got"),
    ("model.preprocess.scale=1/1e400", "model.preprocess.scale: Invalid literal for Fraction: '1/1e400'"),
    ("model.preprocess.scale='1/3/4'", "model.preprocess.scale: Invalid literal for Fraction: '1/3/4'"),
    ("model.preprocess.mean=[.nan]", "model.preprocess.mean: NaN is not a number"),
    ("model.preprocess.mean=[1/0]", "model.preprocess.mean.0: 1/0 is not a finite number"),
    ("model.preprocess.mean=0.5", "model.preprocess.mean: expected a list (got 0.5)"),
    ("model.preprocess.std=[0]", "model.preprocess.std: a standard deviation is positive"),
    ("model.preprocess.std=[.inf]", "model.preprocess.std: the number is infinite, or larger than"),
    ("model.preprocess.std=[true]", "model.preprocess.std: true is not a number"),
    ("model.preprocess.std=[1,2,3,4]", "mean' and 'std' do not match a sample of shape [8, 8, 1]: it"),
    ("model.preprocess.layout=XYZ", "model.preprocess.layout: input should be 'NHWC' or 'NCHW' (got"),
    ("model.code=good.yaml", "model: code is for the custom layers of a file, and requires trust: true"),
    ("model.labels=[a,b]", "model.labels has 2 names, but the evaluation data has a sample"),
    ("model.labels=a", "model.labels: expected a list (got 'a')"),
    ("model.labels=[1,2]", "model.labels.0: input should be a valid string (got 1)"),
    ("model.labels=[a,a,a,a,a,a,a,a,a,a]", "model.labels: label 'a': every class needs a name of its own"),
    ("model.labels=[a,b,c,d,e,f,g,h,i,'']", "model.labels: label '': every class needs a name of its own"),
    (
        "model.inputs=[{name: x, shape: [1,8,8,1], dtype: float99}]",
        "model.inputs: input 'x': dtype 'float99' is not a numeric type",
    ),
    (
        "model.inputs=[{name: x, shape: [1,8,8,1], dtype: object}]",
        "model.inputs: input 'x': dtype 'object' is not a numeric type",
    ),
    (
        "model.inputs=[{name: x, shape: [1,8,8,1], dtype: U5}]",
        "model.inputs: input 'x': dtype 'U5' is not a numeric type of",
    ),
    (
        'model.inputs=[{name: x, shape: [1,8,8,1], dtype: "datetime64"}]',
        "model.inputs: input 'x': dtype 'datetime64' is not a numeric",
    ),
    (
        'model.inputs=[{name: x, shape: [1,8,8,1], dtype: "i4,i4"}]',
        "model.inputs: input 'x': dtype 'i4,i4' is not a numeric type of",
    ),
    (
        'model.inputs=[{name: x, shape: [1,8,8,1], dtype: ""}]',
        "model.inputs: input 'x': dtype '' is not a numeric type of",
    ),
    (
        'model.inputs=[{name: x, shape: [1,8,8,1], dtype: "complex64"}]',
        "model.inputs: input 'x': dtype 'complex64' is not a numeric",
    ),
    (
        'model.inputs=[{name: x, shape: [1,8,8,1], dtype: ">f4"}]',
        "model.inputs: input 'x': dtype '>f4' is not a numeric type of",
    ),
    (
        "model.inputs=[{name: x, shape: [1,8,8,-1]}]",
        "model.inputs: input 'x': shape [1, 8, 8, -1] needs a batch",
    ),
    (
        "model.inputs=[{name: x, shape: [0,8,8,1]}]",
        "model.inputs: input 'x': shape [0, 8, 8, 1] needs a batch axis,",
    ),
    (
        "model.inputs=[{name: x, shape: [1,8,8,99999999999999999999]}]",
        "model.inputs.0.shape: the number is infinite, or larger than",
    ),
    ("model.inputs=[{name: x, shape: [1,8,8,true]}]", "model.inputs.0.shape: true is not a number"),
    (
        "model.inputs=[{name: x, shape: []}]",
        "model.inputs: input 'x': shape [] needs a batch axis, and sizes",
    ),
    ("model.inputs=[{name: x, shape: [1,8,8,1], scale: .nan}]", "model.inputs.0.scale: NaN is not a number"),
    (
        "model.inputs=[{name: x, shape: [1,8,8,1], scale: 0}]",
        "model.inputs: input 'x': the quantization scale 0 is not",
    ),
    (
        "model.inputs=[{name: x, shape: [1,8,8,1], scale: -1}]",
        "model.inputs: input 'x': the quantization scale -1 is not",
    ),
    (
        "model.inputs=[{name: x, shape: [1,8,8,1]},{name: x, shape: [1,8,8,1]}]",
        "model.inputs: input 'x': every input needs a name of its own",
    ),
    (
        'model.inputs=[{name: "", shape: [1,8,8,1]}]',
        "model.inputs: input '': every input needs a name of its own",
    ),
    (
        "model.inputs=[{name: x, shape: [1,8,8,1], layout: NHCW}]",
        "model.inputs.0.layout: input should be 'NHWC' or 'NCHW' (got",
    ),
    (
        "model.inputs=[{name: x, shape: [1,8], layout: NHWC}]",
        "model.inputs: input 'x': layout NHWC needs a shape of 4 axes,",
    ),
    ("model.path=~nouser/x.keras", "model.path: no such file:"),
    ("model.path=~nouser", "model.path: no such file:"),
    ('model.path=""', "is not a model: it is a folder without a known model (it"),
    ("model.path=.", "is not a model: it is a folder without a known model (it"),
    ("model.path=/", "/ is not a model: it is a folder without a known model (it"),
    ("model.path=/dev/null", "/dev/null is neither a file nor a folder supported models:"),
    ("model.path=/dev/zero", "/dev/zero is neither a file nor a folder supported models:"),
    ("model.path=[a]", "model.path: input is not a valid path for <class"),
    ("model.path=12", "model.path: input is not a valid path for <class"),
    ("model.path=null", "model: give either path, or factory (with weights)"),
    ('model.path="a\\\\0b"', "model.path: no such file:"),
    ("model.trust=maybe", "model.trust: input should be a valid boolean, unable to"),
    ("model.factory=x", "model.factory: 'x' is not of the form 'module:name'"),
    ("model.weights=x.pt", "model.weights: no such file:"),
    ("model.nosuch=1", "model.nosuch: unknown key 'nosuch'; known: arguments, code, factory,"),
    ("model={}", "model: give either path, or factory (with weights)"),
    ("model=null", "model: input should be a valid dictionary or instance of"),
    ("model=[]", "model: input should be a valid dictionary or instance of"),
    ("name=null", "name: input should be a valid string (got None)"),
    ('name=""', "name: string should match pattern"),
    ("name=../x", "name: string should match pattern"),
    ("name=a/b", "name: string should match pattern"),
    ("name=12", "name: input should be a valid string (got 12)"),
    ('name="ä"', "name: string should match pattern"),
    ("version=2", "version: version 2 is unknown; this edgeopt reads 1"),
    ("version=1.5", "version: input should be a valid integer, got a number with a"),
    ("version=true", "version: true is not a number"),
    ("version=null", "version: input should be a valid integer (got None)"),
    ("formats=[]", "formats: list at least one"),
    ("formats=null", "formats: expected a list (got None)"),
    ("formats=[1]", "formats.0: input should be a valid string (got 1)"),
    ("formats={a: b}", "formats: input should be a valid string (got {'a': 'b'})"),
    ("devices=[]", "no device of the recipe has a runtime"),
    ("devices=null", "devices: expected a list (got None)"),
    ("devices=[nodevice]", "devices.0: no device 'nodevice'; known: android-adb,"),
    ("devices=[~nouser/x.yaml]", "devices.0: no such device file: ~nouser/x.yaml give a device"),
    ("devices=[1]", "devices.0: input should be a valid string (got 1)"),
    ('devices=["a\\\\0b"]', "devices.0: no device 'a\\\\0b'; known: android-adb,"),
    ('devices=["a\\\\0b.yaml"]', "devices.0: no such device file: a\\0b.yaml give a device name or"),
    ("devices=[/]", "devices.0: no such device file: / give a device name or the"),
    ("devices=[/dev/null]", "devices.0: no such device file: /dev/null give a device name or"),
    ("devices=[../x]", "devices.0: no such device file: ../x give a device name or the"),
    ('devices=[""]', "devices.0: no device ''; known: android-adb, arduino-nano-33-ble,"),
    ("gates=[{metric: top1, max_drop: true}]", "gates.0.max_drop: true is not a number"),
    (
        "gates=[{metric: top1, max_drop: .inf}]",
        "gates.0.max_drop: the number is infinite, or larger than any",
    ),
    ("gates=[{metric: top1, max_drop: .nan}]", "gates.0.max_drop: NaN is not a number"),
    (
        "gates=[{metric: top1, max_drop: -1}]",
        "gates.0.max_drop: -1 is too small: no artifact can pass, or all",
    ),
    (
        "gates=[{metric: top1, max_drop: 1e20}]",
        "gates.0.max_drop: the number is infinite, or larger than any",
    ),
    (
        "gates=[{metric: top1, max_drop: 1e400}]",
        "gates.0.max_drop: the number is infinite, or larger than any",
    ),
    (
        'gates=[{metric: top1, max_drop: "1e400"}]',
        "gates.0.max_drop: the number is infinite, or larger than any",
    ),
    (
        'gates=[{metric: top1, max_drop: "1 KiB"}]',
        "gates.0.max_drop: unit 'KiB' is not valid here; expected %",
    ),
    ('gates=[{metric: top1, max_drop: "abc"}]', "gates.0.max_drop: 'abc' is not a number with a unit"),
    ("gates=[{metric: top1, max_drop: []}]", "gates.0.max_drop: input should be a valid number (got [])"),
    ("gates=[{metric: top1, min: 2}]", "gates.0.min: 2 is more than 100 %: write a fraction such as"),
    ("gates=[{metric: top1, min: false}]", "gates.0.min: false is not a number"),
    (
        "gates=[{metric: size_bytes, max: -5}]",
        "gates.0.max: -5 is too small: no artifact can pass, or all of",
    ),
    (
        "gates=[{metric: size_bytes, max: .inf}]",
        "gates.0.max: the number is infinite, or larger than any setting",
    ),
    (
        'gates=[{metric: size_bytes, max: "1e400 KiB"}]',
        "gates.0.max: the number is infinite, or larger than any setting",
    ),
    (
        'gates=[{metric: size_bytes, max: "5 ms"}]',
        "gates.0.max: unit 'ms' is not valid here; expected B, kB, MB,",
    ),
    ("gates=[{metric: latency_p50_ms, max: .nan}]", "gates.0.max: NaN is not a number"),
    (
        "gates=[{metric: latency_p50_ms, max_ratio: 0}]",
        "gates.0.max_ratio: 0 is too small: no artifact can pass, or all",
    ),
    (
        "gates=[{metric: latency_p50_ms, max_ratio: -1}]",
        "gates.0.max_ratio: -1 is too small: no artifact can pass, or",
    ),
    (
        'gates=[{metric: latency_p50_ms, max_ratio: "5 ms"}]',
        "gates.0.max_ratio: unit 'ms' is not valid here; expected %",
    ),
    (
        "gates=[{metric: top1, max_drop: 0.1, confidence: 2}]",
        "gates.0.confidence: input should be less than 1 (got 2)",
    ),
    ("gates=[{metric: top1, max_drop: 0.1, confidence: true}]", "gates.0.confidence: true is not a number"),
    ("gates=[{metric: top1, max_drop: 0.1, confidence: .nan}]", "gates.0.confidence: NaN is not a number"),
    (
        "gates=[{metric: top1, max_drop: 0.1, classes: [a]}]",
        "gates.0.classes: no class 'a'; model.labels is empty",
    ),
    (
        "gates=[{metric: top1, max_drop: 0.1, classes: [-1]}]",
        "gates.0.classes: no class '-1'; model.labels is empty",
    ),
    (
        "gates=[{metric: top1, max_drop: 0.1, classes: [1.5]}]",
        "gates.0.classes.0: input should be a valid string (got 1.5)",
    ),
    (
        'gates=[{metric: top1, max_drop: 0.1, classes: ["²"]}]',
        "gates.0.classes: no class '²'; model.labels is empty",
    ),
    (
        "gates=[{metric: top1, max_drop: 0.1, classes: [true]}]",
        "gates.0.classes: no class 'True'; model.labels is empty",
    ),
    (
        "gates=[{metric: top1, max_drop: 0.1, variants: nov}]",
        "gates.0.variants: no variant 'nov' in this recipe; known: float",
    ),
    ("gates=[{metric: nome, max_drop: 0.1}]", "gates.0.metric: no metric 'nome'; known: agreement,"),
    ("gates=[{metric: top1}]", "gates.0: give exactly one of max, min, max_drop, max_increase,"),
    (
        "gates=[{metric: top1, max: 1, min: 0}]",
        "gates.0: give exactly one of max, min, max_drop, max_increase,",
    ),
    ("gates=[1]", "gates.0: input should be a valid dictionary or instance of"),
    ("gates=5", "gates: expected a list (got 5)"),
    ("limits.stage_minutes=.inf", "limits.stage_minutes: the number is infinite, or larger than"),
    ("limits.stage_minutes=.nan", "limits.stage_minutes: NaN is not a number"),
    ("limits.stage_minutes=-1", "limits.stage_minutes: input should be greater than 0 (got -1)"),
    ("limits.stage_minutes=0", "limits.stage_minutes: input should be greater than 0 (got 0)"),
    ("limits.stage_minutes=1e20", "limits.stage_minutes: input should be less than or equal to"),
    ("limits.stage_minutes=true", "limits.stage_minutes: true is not a number"),
    ('limits.stage_minutes="5 min"', "limits.stage_minutes: input should be a valid number, unable to"),
    ("limits.training_minutes=1e20", "limits.training_minutes: input should be less than or equal to"),
    ("limits.training_minutes=.nan", "limits.training_minutes: NaN is not a number"),
    ("limits.stage_memory=.inf", "limits.stage_memory: the number is infinite, or larger than any"),
    ("limits.stage_memory=.nan", "limits.stage_memory: NaN is not a number"),
    ("limits.stage_memory=-1", "limits.stage_memory: input should be greater than or equal to"),
    ("limits.stage_memory=0", "limits.stage_memory: input should be greater than or equal to"),
    ("limits.stage_memory=1e30", "limits.stage_memory: the number is infinite, or larger than any"),
    ("limits.stage_memory=true", "limits.stage_memory: true is not a number"),
    ('limits.stage_memory="1e400 GiB"', "limits.stage_memory: the number is infinite, or larger than any"),
    ('limits.stage_memory="5 ms"', "limits.stage_memory: unit 'ms' is not valid here; expected B,"),
    ("latency.min_runs=1", "latency.min_runs: input should be greater than or equal to 2"),
    (
        "latency.min_runs=100000000000000000000",
        "latency.min_runs: the number is infinite, or larger than any",
    ),
    ("latency.min_runs=1e20", "latency.min_runs: input should be a valid integer, unable to"),
    ("latency.min_runs=true", "latency.min_runs: true is not a number"),
    ("latency.min_runs=.inf", "latency.min_runs: the number is infinite, or larger than any"),
    ("latency.min_seconds=.inf", "latency.min_seconds: the number is infinite, or larger than any"),
    ("latency.min_seconds=.nan", "latency.min_seconds: NaN is not a number"),
    ("latency.min_seconds=-1", "latency.min_seconds: input should be greater than or equal to 0"),
    ("latency.min_seconds=1e20", "latency.min_seconds: input should be less than or equal to"),
    ("latency.max_seconds=.inf", "latency.max_seconds: the number is infinite, or larger than any"),
    ("latency.max_seconds=.nan", "latency.max_seconds: NaN is not a number"),
    ("latency.max_seconds=0", "latency.max_seconds: input should be greater than 0 (got 0)"),
    ("latency.max_seconds=1e20", "latency.max_seconds: input should be less than or equal to"),
    ("latency.repeats=0", "latency.repeats: input should be greater than or equal to 1"),
    ("latency.repeats=1000", "latency.repeats: input should be less than or equal to 100 (got"),
    ("latency.repeats=true", "latency.repeats: true is not a number"),
    (
        "latency={min_seconds: 50, max_seconds: 5}",
        "latency: min_seconds 50 exceeds max_seconds 5: raise the latter",
    ),
    ("latency={protocol: [a]}", "latency.protocol: input should be 'mlperf-tiny' (got ['a'])"),
    ("latency={protocol: {a: b}}", "latency.protocol: input should be 'mlperf-tiny' (got {'a': 'b'})"),
    ("latency={protocol: nosuch}", "latency.protocol: input should be 'mlperf-tiny' (got 'nosuch')"),
    (
        "latency={protocol: mlperf-tiny, min_runs: 3}",
        "latency: protocol mlperf-tiny fixes min_runs: remove one of the",
    ),
    (
        "data.calibration={uses: npz, with: {path: ~nouser/x.npz}}",
        "data.calibration.with.path: no such file:",
    ),
    ("data.calibration={uses: npz, with: {path: nosuch.npz}}", "data.calibration.with.path: no such file:"),
    ("data.calibration={uses: npz, with: {path: " + LONG + "}}", "data.calibration.with.path:"),
    (
        "data.calibration={uses: npz, with: {path: .}}",
        "damaged, or not an .npz file: [Errno 21] Is a directory",
    ),
    (
        "data.calibration={uses: npz, with: {path: good.npz, limit: 0}}",
        "data.calibration.with.limit: input should be greater than 0",
    ),
    (
        "data.calibration={uses: npz, with: {path: good.npz, limit: true}}",
        "data.calibration.with.limit: true is not a number",
    ),
    (
        "data.calibration={uses: npz, with: {path: good.npz, limit: .inf}}",
        "data.calibration.with.limit: the number is infinite, or larger",
    ),
    (
        "data.calibration={uses: npz, with: {path: good.npz, limit: 100000000000000000000000}}",
        "data.calibration.with.limit: the number is infinite, or larger",
    ),
    (
        "data.calibration={uses: npz, with: {path: good.npz, inputs: []}}",
        "data.calibration.with.inputs: list at least one",
    ),
    (
        "data.calibration={uses: npz, with: {path: good.npz, inputs: [z]}}",
        "no array 'z'; the arrays are 'x', 'y' Set 'inputs' to the keys",
    ),
    (
        "data.calibration={uses: npz, with: {path: good.npz, label: z}}",
        "no array 'z'; the arrays are 'x', 'y' Set 'label' to the key of",
    ),
    (
        "data.calibration={uses: npz, with: {path: good.npz, nosuch: z}}",
        "data.calibration.with.nosuch: unknown key 'nosuch'; known:",
    ),
    (
        "data.calibration={uses: npzz, with: {path: good.npz}}",
        "data.calibration.uses: no dataset 'npzz'; did you mean 'npz'?",
    ),
    (
        "data.calibration={uses: nomod:Class, with: {path: good.npz}}",
        "data.calibration.uses: no dataset 'nomod:Class': no module",
    ),
    ('data.calibration={uses: "json:Nothing"}', "data.calibration.uses: no dataset 'json:Nothing':"),
    (
        'data.calibration={uses: "json:loads"}',
        "data.calibration.uses: 'json:loads' is not a dataset: it must",
    ),
    ('data.calibration={uses: ":x"}', "data.calibration.uses: no dataset ':x': ':x' is not of the form"),
    ('data.calibration={uses: "a.b.c:x"}', "data.calibration.uses: no dataset 'a.b.c:x': no module 'a.b.c'"),
    ('data.calibration={uses: "..:x"}', "data.calibration.uses: no dataset '..:x': '..:x' is not of the"),
    ('data.calibration={uses: "/tmp/x:y"}', "data.calibration.uses: no dataset '"),
    ("data.calibration={uses: 3}", "data.calibration.uses: input should be a valid string (got 3)"),
    ("data.calibration={with: {}}", "data.calibration: 'uses' is missing"),
    (
        "data.calibration={uses: npz, with: 3}",
        "data.calibration.with: input should be a valid dictionary (got",
    ),
    ("data.calibration=npz", "data.calibration: 'path' is missing"),
    ("data.calibration=3", "data.calibration: input should be a valid dictionary or"),
    ("data.calibration=[npz]", "data.calibration: input should be a valid dictionary or"),
    (
        'data.calibration={uses: function, with: {function: "nomod:f"}}',
        "data.calibration.with.function: no module 'nomod' in",
    ),
    ('data.calibration={uses: function, with: {function: "json:nosuch"}}', "data.calibration.with.function:"),
    (
        'data.calibration={uses: function, with: {function: "json:loads"}}',
        "json:loads: missing a required argument: 's' correct 'arguments'",
    ),
    (
        'data.calibration={uses: function, with: {function: ".json:loads"}}',
        "data.calibration.with.function: '.json:loads' is not of the",
    ),
    (
        'data.calibration={uses: function, with: {function: "json.:loads"}}',
        "data.calibration.with.function: 'json.:loads' is not of the",
    ),
    (
        'data.calibration={uses: function, with: {function: "' + LONG + ':loads"}}',
        "data.calibration.with.function: the name of the module",
    ),
    (
        "data.calibration={uses: digits, with: {part: nosuch}}",
        "data.calibration.with.part: input should be 'train',",
    ),
    (
        "data.calibration={uses: digits, with: {part: calibration, limit: -1}}",
        "data.calibration.with.limit: input should be greater than 0",
    ),
    ("data.evaluation=null", "metric: accuracy needs data.evaluation: add it, or remove metric"),
    ("data.allow_leak=maybe", "data.allow_leak: input should be a valid boolean, unable to"),
    ("data.nosuch=1", "data.nosuch: unknown key 'nosuch'; known: allow_leak,"),
    ("data=3", "data: input should be a valid dictionary or instance of"),
    ("metric=nosuch", "metric: no metric 'nosuch'; known: agreement, average_precision,"),
    ("metric=[top1, top1]", "metric.1: 'top1' is used twice: give this one a name, {uses:"),
    ('metric={uses: top1, name: "' + LONG + '"}', "metric: string should match pattern"),
    ('metric={uses: top1, name: "ä"}', "metric: string should match pattern"),
    ("metric={uses: top5, with: {k: .inf}}", "metric.with.k: unknown key 'k'"),
    ('metric="json:Nothing"', "metric: no metric 'json:Nothing':"),
    ('metric="json:loads"', "metric: 'json:loads' is not a metric: it must be a subclass of"),
    ('metric="nomod:X"', "metric: no metric 'nomod:X': no module 'nomod' in"),
    ("metric=3", "metric: expected a list (got 3)"),
    (
        "metric=[top1, f1, {uses: roc_auc}]\ngates=[{metric: f1, max_drop: 0.1, classes: [3]}]",
        "gates.0.classes: f1 is a metric of the whole set, and the samples of one class have no value of",
    ),
    (
        "metric=[top1, mae]",
        "metric: the metrics are of different tasks: top1 of classification, mae of regression",
    ),
    ("task=nosuch", "task: no task 'nosuch'; known: classification, detection,"),
    (
        "task={uses: classification, with: {outputs: a}}",
        "task.with.outputs: unknown key 'outputs'; did you mean",
    ),
    (
        "task=detection",
        "metric: 'top1' is a metric of classification, and the task is detection; its metrics are",
    ),
    ('task="json:loads"', "task: 'json:loads' is not a task: it must be a subclass of"),
    ("task=3", "task: input should be a valid dictionary or instance of"),
    ("postprocess=nosuch", "postprocess: no decoder 'nosuch'; known: function, grid, ssd"),
    ("postprocess=grid", "postprocess: 'strides' is missing"),
    ("metric={}", "metric: 'uses' is missing"),
    ("metric=[[]]", "metric.0: input should be a valid dictionary or instance of"),
    ('optimize={"' + LONG + '": {quantize: int8}}', "optimize."),
    ('optimize={"a b": {quantize: int8}}', "optimize.a b: the name 'a b' may only contain letters, digits,"),
    ('optimize={"..": {quantize: int8}}', "optimize...: the name '..' may only contain letters, digits,"),
    ('optimize={"": {quantize: int8}}', "optimize.: the name '' may only contain letters, digits, '-',"),
    ('optimize={".": {quantize: int8}}', "optimize..: the name '.' may only contain letters, digits, '-',"),
    ('optimize={"-x": {quantize: int8}}', "optimize.-x: the name '-x' may only contain letters, digits,"),
    (
        'optimize={".hidden": {quantize: int8}}',
        "optimize..hidden: the name '.hidden' may only contain letters,",
    ),
    ('optimize={"a/b": {quantize: int8}}', "optimize.a/b: the name 'a/b' may only contain letters, digits,"),
    ("optimize={float: {quantize: int8}}", "optimize.float: 'float' is the unmodified baseline and takes no"),
    ("optimize={a: {quantize: int9}}", "optimize.a.quantize: no quantize scheme 'int9'; did you mean"),
    ("optimize={a: {quantise: int8}}", "optimize.a.quantise: unknown intent 'quantise'; did you mean"),
    ("optimize={a: {quantize: true}}", "optimize.a.quantize: quantize is not a boolean: give a scheme"),
    ("optimize={a: {quantize: {}}}", "optimize.a.quantize: give a scheme (dynamic_int8, float16,"),
    ("optimize={a: {quantize: []}}", "optimize.a.quantize: give a scheme (dynamic_int8, float16,"),
    ("optimize={a: {quantize: {scheme: [1]}}}", "optimize.a.quantize: no quantize scheme '[1]'; known:"),
    (
        "optimize={a: {quantize: {scheme: int8, nosuch: 1}}}",
        "optimize.a.quantize.nosuch: unknown option 'nosuch'; known:",
    ),
    ("optimize={a: {quantize: {scheme: int8, max_drop: true}}}", "rejects option 'max_drop'"),
    ("optimize={a: {quantize: {scheme: int8, max_drop: .nan}}}", "rejects option 'max_drop'"),
    ("optimize={a: {quantize: {scheme: int8, max_drop: .inf}}}", "rejects option 'max_drop'"),
    ("optimize={a: {quantize: {scheme: int8, max_drop: -1}}}", "rejects option 'max_drop'"),
    ("optimize={a: {quantize: {scheme: int8, max_drop: 1e20}}}", "rejects option 'max_drop'"),
    ("optimize={a: {quantize: {scheme: int8, calibrator: nosuch}}}", "rejects option 'calibrator'"),
    (
        "optimize={a: {quantize: {scheme: int8, tflite: {nosuch: 1}}}}",
        "optimize.a.quantize.tflite.nosuch: unknown option 'nosuch';",
    ),
    (
        "optimize={a: {quantize: {scheme: int8, tflite: 3}}}",
        "optimize.a.quantize.tflite: give the options of tflite as a",
    ),
    ("optimize={a: {prune: {channels: .nan}}}", "prune_keras rejects option"),
    ("optimize={a: {prune: {channels: 2}}}", "prune_keras rejects option"),
    ("optimize={a: {prune: {channels: true}}}", "prune_keras rejects option"),
    ("optimize={a: {prune: {weights: -1}}}", "prune_keras rejects option"),
    ("optimize={a: {stages: [nosuch]}}", "optimize.a.stages.0: no stage 'nosuch'; known: cluster_keras,"),
    ("optimize={a: {stages: 3}}", "optimize.a.stages: stages must be a list of stages"),
    ("optimize={a: {stages: [3]}}", "optimize.a.stages.0: input should be a valid dictionary or"),
    (
        "optimize={a: {stages: [quantize_tflite], quantize: int8}}",
        "optimize.a: a variant has either stages or intents, not both",
    ),
    (
        "optimize={a: {stages: [{uses: quantize_tflite, with: {scheme: nosuch}}]}}",
        "optimize.a.stages.0.with.scheme: input should be 'int8',",
    ),
    ('optimize={a: {stages: ["json:Nothing"]}}', "optimize.a.stages.0: no stage 'json:Nothing':"),
    ("optimize={a: {stages: [quantize_onnx]}}", "the listed stages end with"),
    ("optimize={a: 3}", "optimize.a: input should be a valid dictionary (got 3)"),
    ("optimize={a: []}", "optimize.a: input should be a valid dictionary (got [])"),
    ("optimize=3", "optimize: input should be a valid dictionary (got 3)"),
    ("optimize=[]", "optimize: input should be a valid dictionary (got [])"),
    ("nosuch=1", "nosuch: unknown key 'nosuch'; known: data, devices, formats,"),
    ("nosuch.a.b.c=1", "nosuch: unknown key 'nosuch'; known: data, devices, formats,"),
    ("formats.9=x", "--set 'formats.9=x': '9' is not a key or index here"),
    (".=x", "unknown key ''; known: data, devices, formats, gates, guessed,"),
    ("=x", "--set '=x' is not of the form key.key=value"),
    ("a", "--set 'a' is not of the form key.key=value"),
    ("model.path.x=1", "--set 'model.path.x=1': 'x' is not a key or index here"),
]
TEXTS = [
    ("empty", b"", "the file is empty"),
    ("a list", b"[1, 2]", "a recipe is a mapping of keys to values"),
    ("a scalar", b"x" * 100_000, "a recipe is a mapping of keys to values"),
    ("not closed", b"a: [", "not valid YAML"),
    ("not UTF-8", b"caf\xe9: 1", "cannot read bad.yaml"),
    ("UTF-16", b"\xff\xfea\0", "cannot read bad.yaml"),
    ("a zero byte", b"\0", "not valid YAML"),
    ("two documents", b"a: 1\n---\nb: 2\n", "not valid YAML"),
    ("a key twice", b"a: 1\na: 2\n", "key 'a' is given twice"),
    ("an alias", b"a: &x [1]\nb: *x\n", "aliases are not supported"),
    ("a list as key", b"? [a]\n: 1\n", "a key must be plain text"),
    ("a Python object", b"!!python/object:os.system x", "cannot be read"),
    ("a tag that does not fit", b"a: !!bool x\n", "a bool"),
    ("an empty integer", b"a: !!int ''\n", "a int"),
    ("a broken time", b"a: !!timestamp x\n", "a timestamp"),
    ("an impossible date", b"a: 2020-99-99\n", "cannot be read"),
    ("an integer of 5,000 digits", b"a: " + b"9" * 5000, "cannot be read"),
    ("3,000 brackets", b"[" * 3_000, "nested more than 100 levels deep"),
    ("100,000 brackets", b"a: " + b"[" * 100_000, "nested more than 100 levels deep"),
    ("100,000 braces", b"{a: " * 100_000, "nested more than 100 levels deep"),
    ("3,000 dashes", b"- " * 3_000 + b"a", "nested more than 100 levels deep"),
    ("brackets in a key", b"? " + b"[" * 5_000, "nested more than 100 levels deep"),
    ("50 wrong labels", b"model: {labels: [" + b"1, " * 50 + b"1]}", "further mistakes"),
]


@pytest.mark.parametrize(("setting", "words"), SETTINGS, ids=lambda value: ascii(value[:40]))
def test_a_bad_setting(setting: str, words: str, refused: Refused) -> None:
    settings = [part for one in setting.split("\n") for part in ("--set", one)]
    refused(words, "plan", "good.yaml", *settings)


@pytest.mark.parametrize(("text", "words"), [row[1:] for row in TEXTS], ids=[row[0] for row in TEXTS])
def test_a_file_that_is_no_recipe(text: bytes, words: str, place: Path, refused: Refused) -> None:
    (place / "bad.yaml").write_bytes(text)
    refused(words, "plan", "bad.yaml")


def test_the_position_of_an_override_is_not_that_of_the_file(edgeopt: Callable[..., tuple[int, str]]) -> None:
    _, message = edgeopt("plan", "good.yaml", "--set", "limits.stage_minutes=0")
    assert "good.yaml: limits.stage_minutes: input should be greater than 0" in message


def test_a_gate_on_a_class_without_samples_is_told_before_the_run(place: Path, refused: Refused) -> None:
    gate = "gates=[{metric: top1, max_drop: 0.1, classes: [99]}]"
    refused(
        "judges class 99, of which",
        "optimize",
        "good.yaml",
        "--set",
        gate,
        "--out",
        "out",
        "--store",
        "store",
    )


def test_names_of_classes_that_do_not_exist_are_found_without_importing(
    place: Path, refused: Refused
) -> None:
    (place / "mine.py").write_text("raise SystemExit\n\n\ndef build():\n    pass\n", "utf-8")
    settings = (
        "model={factory: 'mine:biuld', inputs: [{name: x, shape: [1, 8, 8, 1]}]}",
        "metric='mine:biuld'",
        "data.calibration={uses: function, with: {function: 'mine:biuld'}}",
    )
    for setting in settings:
        refused(
            "mine.py does not define 'biuld'; did you mean 'build'?", "plan", "good.yaml", "--set", setting
        )
