//! The processor's wide instructions: the same loops compiled for each set, and the best one chosen when they run.

/// A set of instructions that this processor has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Instructions(Set);

impl std::fmt::Debug for Instructions {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(formatter)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Set {
    /// None in particular; also the specification of the others.
    Plain,
    /// AVX2 and fused multiplication.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 with permutations of bytes.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// NEON, which every 64-bit Arm processor has.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Instructions {
    /// Those that this processor has: first none in particular, last the best. All give the same bits.
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self(Set::Plain)];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                all.push(Self(Set::Avx2));
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vbmi")
                {
                    all.push(Self(Set::Avx512));
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        all.push(Self(Set::Neon));
        all
    }

    /// The best one.
    pub fn best() -> Self {
        *Self::all().last().expect("there is always one")
    }
}

/// Which of the equal ways to turn a part of a block into codes, or back, a task may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// `plain`.
    Plain,
    /// `lanes`.
    Lanes,
    /// `tables` where they pay, else `lanes`.
    #[cfg(target_arch = "x86_64")]
    Tables,
}

/// Work that is compiled for each set of instructions.
pub(crate) trait Task {
    fn run(self, way: Way);
}

/// Runs the task with `instructions`.
#[inline]
#[cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "instructions that a processor may lack")
)]
pub(crate) fn dispatch(instructions: Instructions, task: impl Task) {
    match instructions.0 {
        Set::Plain => task.run(Way::Plain),
        // SAFETY: only `Instructions::all` makes a set, and only of what is there.
        #[cfg(target_arch = "x86_64")]
        Set::Avx2 => unsafe { avx2(task) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Set::Avx512 => unsafe { avx512(task) },
        #[cfg(target_arch = "aarch64")]
        Set::Neon => task.run(Way::Lanes),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(task: impl Task) {
    task.run(Way::Lanes);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx2,fma")]
fn avx512(task: impl Task) {
    task.run(Way::Tables);
}
