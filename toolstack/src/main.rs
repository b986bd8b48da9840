//! The command `xlrs`.

fn main() {
    eprintln!("xlrs: nothing here yet");
    std::process::exit(2);
}
