//! Memory: all of it is mapped and is ours, the heap hands out what it has, memcpy and friends are right.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use pvguest::Guest;
use pvguest::pv_drivers::pattern;

use crate::{Test, demand};

pub(crate) const TESTS: &[Test] = &[
    ("the heap has nearly all of the memory", heap_size),
    ("every page of the heap holds what was written", every_page),
    ("memory handed out comes back", comes_back),
    ("copying and comparing", copies),
    ("floating point", floats),
];

fn heap_size(guest: &Guest) -> Result<(), String> {
    let memory = guest.memory();
    // Image, stack, page tables, p2m.
    let rest = memory.total_kib - memory.heap_kib;
    demand!(
        rest < 1024 + memory.total_kib / 100,
        "{rest} of {} KiB are not on the heap",
        memory.total_kib
    );
    Ok(())
}

fn every_page(guest: &Guest) -> Result<(), String> {
    const PIECE: usize = 64 * 1024;
    let free = guest.memory().heap_kib as usize * 1024 / PIECE;
    // All but a little, which the list of pieces takes.
    let count = free - 4 - free * size_of::<Vec<u8>>() / PIECE;
    let mut pieces: Vec<Vec<u8>> = Vec::with_capacity(count);
    for seed in 0..count {
        let mut piece = Vec::new();
        demand!(
            piece.try_reserve_exact(PIECE).is_ok(),
            "piece {seed} of {count} of the heap is not to be had"
        );
        piece.resize(PIECE, 0);
        for page in piece.chunks_mut(4096) {
            pattern::fill(seed as u64, 0, &mut page[..512]);
        }
        pieces.push(piece);
    }
    for (seed, piece) in pieces.iter().enumerate() {
        for (number, page) in piece.chunks(4096).enumerate() {
            demand!(
                pattern::matches(seed as u64, 0, &page[..512]),
                "page {number} of piece {seed} changed"
            );
        }
    }
    Ok(())
}

fn comes_back(guest: &Guest) -> Result<(), String> {
    let before = guest.memory().heap_used_kib;
    for round in 0..64usize {
        let kept: Vec<Vec<u8>> = (1..100).map(|n| vec![0; n * (round + 1)]).collect();
        demand!(kept.len() == 99, "round {round}");
    }
    let after = guest.memory().heap_used_kib;
    demand!(before == after, "{before} KiB in use before, {after} after");
    Ok(())
}

fn copies(_: &Guest) -> Result<(), String> {
    let source: Vec<u8> = (0..=255).cycle().take(600).collect();
    for len in (0..70).chain([127, 128, 255, 500]) {
        for shift in 0..17 {
            let mut to = vec![0xee; 600];
            to[shift..shift + len].copy_from_slice(&source[3..3 + len]);
            demand!(to[shift..shift + len] == source[3..3 + len], "copy {len}");
            demand!(
                to[..shift]
                    .iter()
                    .chain(&to[shift + len..])
                    .all(|&b| b == 0xee),
                "copying {len} bytes to {shift} wrote beyond"
            );
            for target in [0, shift, 2 * shift] {
                let mut moved = source.clone();
                moved.copy_within(shift..shift + len, target);
                let right = (0..len).all(|at| moved[target + at] == source[shift + at]);
                demand!(right, "moving {len} bytes from {shift} to {target}");
            }
            to[shift..shift + len].fill(7);
            demand!(to[shift..shift + len].iter().all(|&b| b == 7), "fill {len}");
            demand!(
                to[..shift]
                    .iter()
                    .chain(&to[shift + len..])
                    .all(|&b| b == 0xee),
                "filling {len} bytes at {shift} wrote beyond"
            );
        }
    }
    demand!(source[..300] < source[1..301], "comparing");
    Ok(())
}

fn floats(_: &Guest) -> Result<(), String> {
    let sum: f64 = (1..=100)
        .map(|n| 1.0 / f64::from(core::hint::black_box(n)))
        .sum();
    let text = format!("{sum:.9}");
    demand!(text == "5.187377518", "the 100th harmonic number is {text}");
    Ok(())
}
