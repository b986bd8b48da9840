//! The guest's disk.

use std::fs::File;

use scenarios::block::{out_of_range, round_trip as write_and_compare};
use scenarios::{OrStop, Outcome};

use crate::real::driver::Driver;
use crate::real::host::Host;
use crate::real::snapshot::leaves_nothing;

/// 64 MiB through the front end, compared in the file behind it.
pub fn round_trip(host: &Host) -> Outcome {
    let image = host.zero_file("disk.img", 80)?;
    leaves_nothing(host, || {
        let driver = Driver::create(host, "block", |config| config.disk(&image))?;
        let mut file = File::open(&image).or_broken("open the image")?;
        host.step("64 MiB through the guest's disk");
        write_and_compare(&mut driver.disk(), &mut file, 0x5eed, 64)?;
        host.step("requests beyond the end");
        out_of_range(&mut driver.disk(), &mut file)?;
        driver.shutdown()
    })
}
