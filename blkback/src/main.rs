//! The command `blkback`.

fn main() {
    eprintln!("blkback: nothing here yet");
    std::process::exit(2);
}
