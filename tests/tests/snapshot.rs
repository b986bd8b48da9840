//! Snapshots of a running disk on the fake, with real files: the toolstack's steps, requests, and backends that die come in
//! the order of a seed.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use blkback::{DataMove, Disk, Format, open_any};
use scenarios::fake::{FakeDisk, Machine};
use xen_backend::overlay::Overlay;
use xen_fake::Schedule;
use xen_hal::{Store, StoreExt};

const SECTORS: u64 = 4096;
/// Snapshots of each disk.
const ROUNDS: usize = 4;

/// A toolstack that makes one snapshot after another, as `xlrs block-snapshot` does. It may be killed, too: then
/// it begins anew with another file.
struct Toolstack {
    folder: PathBuf,
    back: String,
    dice: Schedule,
    state: State,
    overlays: usize,
    /// Images that are behind others now, and what was in them when the command returned.
    behind: Vec<(PathBuf, Vec<u8>)>,
    deaths: usize,
}

#[derive(Clone, Debug)]
enum State {
    Begin,
    Asked(PathBuf),
    Committed(PathBuf),
}

impl Toolstack {
    fn node(&self, name: &str) -> String {
        format!("{}/{name}", self.back)
    }

    fn text(&self, store: &impl Store, name: &str) -> String {
        let value = store.read_optional(None, &self.node(name)).unwrap();
        String::from_utf8(value.unwrap_or_default()).unwrap()
    }

    fn write(&self, store: &impl Store, name: &str, value: &str) {
        store
            .write(None, &self.node(name), value.as_bytes())
            .unwrap();
    }

    fn step(&mut self, machine: &mut Machine) -> bool {
        let store = &machine.store;
        let over = self.behind.len() == ROUNDS && matches!(self.state, State::Begin);
        if over || self.text(store, "state") != "4" {
            return false;
        }
        if self.dice.chance(1, 12) && !matches!(self.state, State::Begin) {
            self.deaths += 1;
            self.state = State::Begin;
            return true;
        }
        let now = self.text(store, "params");
        let (format, image) = match now.strip_prefix("qcow2:") {
            Some(path) => ("qcow2", PathBuf::from(path)),
            None => ("raw", PathBuf::from(&now)),
        };
        match self.state.clone() {
            State::Begin if self.text(store, "physical-device-path") != image.to_str().unwrap() => {
                // Who committed was killed: it is not done yet.
                return false;
            }
            State::Begin => {
                self.overlays += 1;
                let path = self.folder.join(format!("overlay-{}", self.overlays));
                let overlay = Overlay {
                    backing: image.to_str().unwrap(),
                    format,
                    sectors_512: SECTORS,
                };
                overlay.create(&path, 0o600).unwrap();
                store
                    .rm_if_present(None, &self.node("next-status"))
                    .unwrap();
                let params = format!("qcow2:{}", path.display());
                self.write(store, "next-params", &params);
                self.state = State::Asked(path);
            }
            State::Asked(path) => {
                let status = self.text(store, "next-status");
                if status != "ready" {
                    assert_eq!(status, "", "{}", path.display());
                    return false;
                }
                let params = format!("qcow2:{}", path.display());
                self.write(store, "params", &params);
                self.behind.push((image, Vec::new()));
                self.state = State::Committed(path);
            }
            State::Committed(path) => {
                if self.text(store, "physical-device-path") != path.to_str().unwrap() {
                    return false;
                }
                let (image, content) = self.behind.last_mut().unwrap();
                *content = std::fs::read(image).unwrap();
                self.state = State::Begin;
            }
        }
        true
    }
}

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn folder(name: &str) -> Folder {
    let memory = Path::new("/dev/shm");
    let place = match memory.is_dir() {
        true => memory.to_path_buf(),
        false => std::env::temp_dir(),
    };
    let path = place.join(format!("scenario-snapshot-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    Folder(path)
}

/// One disk through all its snapshots; how often backend and toolstack died.
fn run(seed: u64, kill_one_in: usize) -> (usize, usize) {
    let folder = folder(&format!("{seed}-{kill_one_in}"));
    let base = folder.0.join("base.img");
    std::fs::write(&base, vec![0; (SECTORS * 512) as usize]).unwrap();
    let data_move = match seed % 2 {
        0 => DataMove::Copy,
        _ => DataMove::Persistent,
    };
    let machine = Machine::with_files(data_move, folder.0.clone()).expect("an empty host");
    let guest = machine.create_guest("snapshot").expect("a guest");
    machine
        .add_disk(&guest, base.to_str().unwrap(), "w")
        .expect("a disk");
    let toolstack = RefCell::new(Toolstack {
        folder: folder.0.clone(),
        back: format!("/local/domain/0/backend/vbd/{}/51712", guest.domain.id()),
        dice: Schedule::new(seed + 1000),
        state: State::Begin,
        overlays: 0,
        behind: Vec::new(),
        deaths: 0,
    });
    let machine = RefCell::new(machine);
    let mut disk = FakeDisk::open_killing(&machine, &guest, Schedule::new(seed), kill_one_in)
        .unwrap_or_else(|stop| panic!("seed {seed}: {stop}"));
    disk.beside(Box::new(|machine| toolstack.borrow_mut().step(machine)));
    let mut model = vec![0; (SECTORS * 512) as usize];
    let mut dice = Schedule::new(seed + 2000);
    for operation in 0.. {
        assert!(operation < 2_000, "seed {seed}: the snapshots do not end");
        let count = 1 + dice.pick(64) as u64;
        let first = dice.pick((SECTORS - count) as usize) as u64;
        let place = first as usize * 512..(first + count) as usize * 512;
        let what = format!("seed {seed}, operation {operation}");
        match dice.pick(8) {
            0..4 => {
                let word = (operation as u64 + 1).to_le_bytes();
                let mut data = vec![0; place.len()];
                data.chunks_mut(8).for_each(|to| to.copy_from_slice(&word));
                disk.write(first, &data)
                    .unwrap_or_else(|e| panic!("{what}: write: {e}"));
                model[place].copy_from_slice(&data);
            }
            4 => disk
                .flush()
                .unwrap_or_else(|e| panic!("{what}: flush: {e}")),
            _ => {
                let mut data = vec![0; place.len()];
                disk.read(first, &mut data)
                    .unwrap_or_else(|e| panic!("{what}: read: {e}"));
                assert!(data == model[place], "{what}: sector {first} differs");
            }
        }
        let done = toolstack.borrow();
        if done.behind.len() == ROUNDS && matches!(done.state, State::Begin) && operation > 40 {
            break;
        }
    }
    let kills = disk.kills();
    disk.close()
        .unwrap_or_else(|stop| panic!("seed {seed}: {stop}"));
    let toolstack = toolstack.into_inner();
    let machine = machine.into_inner();
    let params = toolstack.text(&machine.store, "physical-device-path");
    machine.destroy_guest(guest).expect("destroy the guest");
    machine.finish();
    for (image, content) in &toolstack.behind {
        // One whose command was killed has no content to compare with.
        let same = content.is_empty() || std::fs::read(image).unwrap() == *content;
        assert!(same, "seed {seed}: {} has changed", image.display());
    }
    let disk = Disk::plain(PathBuf::from(params), Format::Qcow2, true);
    let whole = open_any(vec![folder.0.clone()])(&disk).expect("open the last image");
    let mut found = vec![0; model.len()];
    whole.read(0, &mut found).expect("read the last image");
    assert!(found == model, "seed {seed}: the last image differs");
    (kills, toolstack.deaths)
}

#[test]
fn a_snapshot_is_not_noticed() {
    for seed in 0..6 {
        run(seed, 0);
    }
}

#[test]
fn backends_and_toolstacks_that_die_lose_nothing() {
    let (mut kills, mut deaths) = (0, 0);
    for seed in 100..116 {
        let (killed, died) = run(seed, 12);
        (kills, deaths) = (kills + killed, deaths + died);
    }
    println!("{kills} backends and {deaths} toolstacks died");
    assert!(
        kills > 100 && deaths > 5,
        "only {kills} backends and {deaths} toolstacks died"
    );
}
