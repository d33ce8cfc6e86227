//! Large tables.

use std::marker::PhantomData;

use bytemuck::Pod;
use memmap2::MmapMut;

/// A zeroed array on large pages where the system has them: tables of megabytes that are read at random would spend
/// most of their time in looking up small pages.
#[derive(Debug)]
pub(crate) struct Table<T> {
    memory: MmapMut,
    items: PhantomData<T>,
}

const LARGE_PAGE: usize = 1 << 21;

impl<T: Pod> Table<T> {
    /// An array of `len` zeroed items, at least one.
    ///
    /// # Panics
    ///
    /// If the system has no memory left.
    pub(crate) fn zeroed(len: usize) -> Self {
        let size = len * size_of::<T>();
        let memory = MmapMut::map_anon(size).expect("the system gives memory");
        #[cfg(target_os = "linux")]
        if size >= LARGE_PAGE {
            // A hint: without large pages the table is slower, not wrong.
            drop(memory.advise(memmap2::Advice::HugePage));
        }
        Self { memory, items: PhantomData }
    }

    #[inline(always)]
    pub(crate) fn as_slice(&self) -> &[T] {
        bytemuck::cast_slice(&self.memory)
    }

    #[inline(always)]
    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.memory)
    }
}
