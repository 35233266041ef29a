"""Kernels are counted as a GPU launches them; compiling for one needs JAX's CUDA plugin."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest

import gpu_target
from trpo_jax.execution.program import Program

PROGRAM = """HloModule jit_f, is_scheduled=true

%fused_add (p.0: f32[4]) -> f32[4] {
  %p.0 = f32[4]{0} parameter(0)
  ROOT %add.1 = f32[4]{0} add(%p.0, %p.0)
}

%inner (arg: (s32[], f32[4])) -> (s32[], f32[4]) {
  %arg = (s32[], f32[4]{0}) parameter(0)
  %x.1 = f32[4]{0} get-tuple-element(%arg), index=1
  %f.1 = f32[4]{0} fusion(%x.1), kind=kLoop, calls=%fused_add
  %f.2 = (f32[4]{0}, /*index=1*/f32[4]{0}) fusion(%f.1), kind=kLoop, calls=%fused_add
  ROOT %t.1 = (s32[], f32[4]{0}) tuple(%f.1, %f.1)
}

%outer (arg.2: (s32[], f32[4])) -> (s32[], f32[4]) {
  %arg.2 = (s32[], f32[4]{0}) parameter(0)
  %w.1 = (s32[], f32[4]{0}) while(%arg.2), condition=%c, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
  %copy.1 = f32[4]{0} copy(%w.1)
  ROOT %t.2 = (s32[], f32[4]{0}) tuple(%copy.1, %copy.1)
}

%yes (p.1: f32[4]) -> f32[4] {
  %p.1 = f32[4]{0} parameter(0)
  ROOT %f.3 = f32[4]{0} fusion(%p.1), kind=kLoop, calls=%fused_add
}

%no (p.2: f32[4]) -> f32[4] {
  ROOT %p.2 = f32[4]{0} parameter(0)
}

ENTRY %main (p.3: f32[4]) -> f32[4] {
  %p.3 = f32[4]{0} parameter(0)
  %s.1 = ((f32[4]{0}), f32[4]{0}, u32[]) fusion-start(%p.3), kind=kLoop, calls=%fused_add
  %s.2 = f32[4]{0} fusion-done(%s.1)
  %w.2 = (s32[], f32[4]{0}) while(%s.2), condition=%c, body=%outer
  %i.1 = f32[4]{0} conditional(%p.3, %w.2, %w.2), branch_computations={%yes, %no}
  ROOT %g.1 = (f32[4]{0}, s8[64]{0}) custom-call(%i.1), custom_call_target="__cublas$lt$matmul"
}
"""


def test_kernels_are_counted_with_the_trips_of_loops_whose_length_is_known():
    kernels, loops = gpu_target.count_kernels(PROGRAM)
    # The inner loop: 3 trips of 2. The outer one, of unknown length: those and a copy, once. Then what starts aside, one
    # branch, and a library's product.
    assert loops == [gpu_target.Loop(3, 2), gpu_target.Loop(None, 7)]
    assert kernels == 7 + 1 + 1 + 1


def test_without_the_plugin_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"^gpu_programs needs JAX's CUDA plugin .*: pip install jax-cuda13-plugin==\S+ jax-"):
        gpu_target.h100()


def test_programs_of_a_training_are_measured_as_they_are_compiled():
    recorder = gpu_target.Recorder()
    Program("rollout", jax.jit(jnp.sin)).compile(recorder, jnp.ones(3))
    ((measured, trace),) = recorder.measured
    assert (measured.kernels, measured.loops) == (1, [])
    assert min(measured.compile_seconds, trace) > 0


def test_a_program_is_compiled_for_a_gpu_that_is_not_there():
    pytest.importorskip("jax_plugins.xla_cuda13", reason="needs JAX's CUDA plugin")
    device = gpu_target.h100()
    described = gpu_target.described(jnp.ones((512, 512)), device)
    measured = gpu_target.measure(jax.jit(lambda x: jnp.tanh(x @ x).sum(0)).lower(described).compile)
    assert 2 <= measured.kernels <= 6
    assert measured.compile_seconds > 0
