//! The same loops compiled for the processor's wide instructions, chosen when they run.

/// Work that is compiled for each set of instructions.
pub(crate) trait Task {
    fn run<const FUSED: bool>(self);
}

/// Runs the task with the widest instructions of this processor.
#[cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "instructions that a processor may lack")
)]
pub(crate) fn dispatch(task: impl Task) {
    #[cfg(target_arch = "x86_64")]
    {
        let wide = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        if wide && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq") {
            // SAFETY: they are there.
            return unsafe { avx512(task) };
        }
        if wide {
            // SAFETY: they are there.
            return unsafe { avx2(task) };
        }
    }
    task.run::<{ cfg!(target_arch = "aarch64") }>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(task: impl Task) {
    task.run::<true>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx2,fma")]
fn avx512(task: impl Task) {
    task.run::<true>();
}
