//! How a C structure or constant is declared here, with the assertions and the table that a test compares.

use core::mem::MaybeUninit;

use crate::types::{DomId, GrantRef, Mfn, Pfn, Port, VcpuId};

/// Types that are nothing but their bytes: they may be read from and written to memory that others own.
///
/// # Safety
/// Every bit pattern must be a valid value and there must be no padding bytes (a write would leak what
/// our memory held before, XSA-216).
pub unsafe trait Plain: Copy + 'static {
    /// The value whose bytes are all zero.
    // SAFETY: every bit pattern is a valid value, by the trait's contract.
    const ZERO: Self = unsafe { MaybeUninit::<Self>::zeroed().assume_init() };

    /// The value's bytes.
    fn as_bytes(&self) -> &[u8] {
        // SAFETY: `self` is valid for its size, has no padding (all bytes initialised) and is borrowed
        // for as long as the slice.
        unsafe { core::slice::from_raw_parts((&raw const *self).cast(), size_of::<Self>()) }
    }

    /// The bytes of values that stand one after another.
    fn all_as_bytes(values: &[Self]) -> &[u8]
    where
        Self: Sized,
    {
        // SAFETY: as in `as_bytes`; a slice has no gaps.
        unsafe { core::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
    }

    /// The value's bytes, for filling them in.
    fn as_bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_bytes`; any bytes written make a valid value; the borrow is exclusive.
        unsafe { core::slice::from_raw_parts_mut((&raw mut *self).cast(), size_of::<Self>()) }
    }

    /// Copies a value from the front of `bytes`; none if there are too few.
    fn from_prefix(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..size_of::<Self>())?;
        let mut value = Self::ZERO;
        value.as_bytes_mut().copy_from_slice(bytes);
        Some(value)
    }
}

macro_rules! plain {
    ($($ty:ty)*) => {
        // SAFETY: integers, and transparent wrappers of one, take every bit pattern and have no padding.
        $(unsafe impl Plain for $ty {})*
    };
}
plain! { u8 u16 u32 u64 i8 i16 i32 i64 DomId GrantRef Port Pfn Mfn VcpuId }

// SAFETY: arrays have no padding between their elements.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// What one structure looks like, for the test that asks a C compiler.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// The type's name in C.
    pub c: &'static str,
    /// `sizeof`.
    pub size: usize,
    /// `_Alignof`.
    pub align: usize,
    /// The fields that C has too (our explicit padding is not listed).
    pub fields: &'static [Field],
}

/// One field of a [`Layout`].
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// The field's designator in C.
    pub c: &'static str,
    /// `offsetof`.
    pub offset: usize,
    /// `sizeof`.
    pub size: usize,
}

/// One constant, for the test that asks a C compiler.
#[derive(Clone, Copy, Debug)]
pub struct Constant {
    /// The name in C.
    pub c: &'static str,
    /// Our value.
    pub value: i128,
}

/// Declares structures that mirror C's: `Name = "C name", size { field @ offset: type = "C field", }`.
/// A field without a C name is explicit padding. Asserts size, offsets and the absence of padding, and
/// collects the layouts in a table.
#[macro_export]
macro_rules! abi_structs {
    (
        table $table:ident;
        $(
            $(#[$meta:meta])*
            $name:ident = $c:literal, $size:literal {
                $($(#[$fmeta:meta])* $field:ident @ $offset:literal: $ty:ty $(= $cfield:literal)?,)*
            }
        )*
    ) => {
        $(
            $(#[$meta])*
            #[doc = concat!("\n\nC: `", $c, "`, ", $size, " bytes.")]
            #[doc(alias = $c)]
            #[repr(C)]
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            pub struct $name {
                $(
                    $(#[$fmeta])*
                    #[doc = concat!("@", $offset $(, ": `", $cfield, "`")?)]
                    pub $field: $ty,
                )*
            }

            const _: () = {
                const fn plain<T: $crate::Plain>() {}
                $(plain::<$ty>();)*
                assert!(size_of::<$name>() == $size);
                assert!(0 $(+ size_of::<$ty>())* == $size, "padding must be explicit");
                $(assert!(core::mem::offset_of!($name, $field) == $offset);)*
            };

            // SAFETY: all fields are plain and there is no padding between them, by the assertions above.
            unsafe impl $crate::Plain for $name {}
        )*

        /// The structures of this header, for the test that asks a C compiler.
        pub const $table: &[$crate::Layout] = &[
            $($crate::Layout {
                c: $c,
                size: $size,
                align: align_of::<$name>(),
                fields: &[$($($crate::Field { c: $cfield, offset: $offset, size: size_of::<$ty>() },)?)*],
            },)*
        ];
    };
}

/// Declares constants: `NAME: type = value, "C name";`, and collects them in a table.
#[macro_export]
macro_rules! abi_consts {
    (
        table $table:ident;
        $($(#[$meta:meta])* $name:ident: $ty:ty = $value:expr, $c:literal;)*
    ) => {
        $(
            $(#[$meta])*
            #[doc = concat!("`", $c, "`")]
            pub const $name: $ty = $value;
        )*

        /// The constants of this header, for the test that asks a C compiler.
        pub const $table: &[$crate::Constant] =
            &[$($crate::Constant { c: $c, value: $name as i128 },)*];
    };
}
