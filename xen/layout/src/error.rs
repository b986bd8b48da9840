//! Why an image cannot be booted as a PV guest.

use alloc::string::String;
use core::fmt;

/// What is wrong with an image, or with the wish to boot it in so much memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayoutError {
    /// Neither an ELF file nor a bzImage nor something compressed that is known.
    NotAKernel,
    /// An ELF file whose structure is broken: which part.
    BadElf(&'static str),
    /// An ELF file for another machine, or no program.
    WrongElf(String),
    /// A bzImage whose header is broken: which part.
    BadBzImage(&'static str),
    /// An image without the ELF notes of a Xen PV kernel: which one is missing or wrong.
    NotPv(String),
    /// A note asks for something that cannot be.
    BadNote {
        /// The note's name in elfnote.h, such as `"INIT_P2M"`.
        note: &'static str,
        /// Its value.
        value: u64,
        /// Why not.
        why: &'static str,
    },
    /// The image and what belongs to it do not fit into the guest's memory.
    TooLittleMemory {
        /// Pages of 4 KiB needed to start.
        needed_pages: u64,
        /// Pages the guest has.
        pages: u64,
    },
    /// More memory than can be described.
    TooMuchMemory {
        /// Pages asked for.
        pages: u64,
    },
    /// The command line is longer than start_info has room for.
    CommandLineTooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// The list of machine frames has another length than the guest's memory.
    WrongFrameCount {
        /// Frames given.
        given: usize,
        /// Frames expected.
        expected: u64,
    },
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LayoutError::NotAKernel => {
                write!(
                    f,
                    "neither an ELF file nor a bzImage nor a compressed kernel"
                )
            }
            LayoutError::BadElf(what) => write!(f, "broken ELF file: {what}"),
            LayoutError::WrongElf(what) => write!(f, "no x86_64 ELF program: {what}"),
            LayoutError::BadBzImage(what) => write!(f, "broken bzImage: {what}"),
            LayoutError::NotPv(what) => write!(f, "no kernel for a Xen PV guest: {what}"),
            LayoutError::BadNote { note, value, why } => {
                write!(f, "ELF note XEN_ELFNOTE_{note} = {value:#x}: {why}")
            }
            LayoutError::TooLittleMemory {
                needed_pages,
                pages,
            } => write!(
                f,
                "the guest needs at least {} MiB to start, it has {} MiB",
                needed_pages.div_ceil(256),
                pages / 256
            ),
            LayoutError::TooMuchMemory { pages } => {
                write!(f, "{} MiB of memory cannot be laid out", pages / 256)
            }
            LayoutError::CommandLineTooLong { len } => write!(
                f,
                "the command line has {len} bytes, start_info has room for {}",
                crate::CMDLINE_MAX
            ),
            LayoutError::WrongFrameCount { given, expected } => {
                write!(f, "{given} machine frames given for {expected} pages")
            }
        }
    }
}

impl core::error::Error for LayoutError {}
