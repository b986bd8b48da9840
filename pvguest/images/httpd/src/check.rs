//! Writes a pattern behind the archive and reads it back, to show that the disk works.

use alloc::format;
use alloc::string::String;

use pvguest::pv_drivers::pattern;

use crate::Failure;
use crate::files::Files;

const CHUNK: usize = 256 * 1024;
const CHUNK_SECTORS: u64 = CHUNK as u64 / 512;

/// Writes and reads `mib` MiB, or as much as fits; what was done, in words.
pub(crate) fn run(files: &mut Files, mib: u64, seed: u64) -> Result<String, Failure> {
    let (disk, first, sectors) = files.free_part();
    if disk.info().read_only {
        return Ok("read-only".into());
    }
    let chunks = (mib.saturating_mul(2048)).min(sectors.saturating_sub(first)) / CHUNK_SECTORS;
    let mut buffer = alloc::vec![0; CHUNK];
    let place = |chunk: u64| first + chunk * CHUNK_SECTORS;
    for at in (0..chunks).map(place) {
        pattern::fill(seed, at, &mut buffer);
        disk.write(at, &buffer)
            .map_err(|error| Failure::Disk("writing", error))?;
    }
    disk.flush()
        .map_err(|error| Failure::Disk("flushing", error))?;
    for at in (0..chunks).map(place) {
        disk.read(at, &mut buffer)
            .map_err(|error| Failure::Disk("reading back", error))?;
        if !pattern::matches(seed, at, &buffer) {
            return Err(Failure::Mismatch(at));
        }
    }
    Ok(format!(
        "{} KiB written and read back at sector {first} with seed {seed}",
        chunks * CHUNK as u64 / 1024
    ))
}
