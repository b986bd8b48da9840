//! Tests of whole configurations.

use super::*;
use crate::config::getter::size_kib;
use crate::config::{Source, load};
use proptest::prelude::*;

fn sources(text: &str) -> Vec<Source> {
    vec![Source {
        name: "web.cfg".into(),
        text: text.into(),
    }]
}

fn good(text: &str) -> (DomainConfig, String) {
    let (config, warnings) = load(&sources(text)).unwrap_or_else(|e| panic!("{e}"));
    (config, warnings.iter().map(|w| w.to_string()).collect())
}

fn bad(text: &str) -> String {
    load(&sources(text)).unwrap_err().to_string()
}

const LEAST: &str = "name='web'\nkernel='/k'\n";

#[test]
fn a_whole_file_is_read() {
    let (config, warnings) = good(
        "# a guest\nname = \"web\"\ntype = 'pv'\nkernel = \"/boot/vmlinuz\"\r\nramdisk='/boot/initrd'\n\
         root = '/dev/xvda ro'\nextra = \"quiet\"\nmemory = 128\nmaxmem='256'\nvcpus = 2\n\
         disk = [ '/srv/web.img,raw,xvda,w',\n 'phy:/dev/vg/data,xvdb,r' ]\n\
         vif = [ 'mac=00:16:3e:01:02:03,bridge=br0' ]\nvif += [ '' ]\n\
         on_crash = 'preserve'\nuuid = '0a1b2c3d-1111-2222-3333-444455556666' # end",
    );
    assert_eq!(warnings, "");
    assert_eq!(config.name, "web");
    assert_eq!(config.cmdline, "root=/dev/xvda ro quiet");
    assert_eq!(
        (config.memory_kib, config.max_memory_kib),
        (128 << 10, 256 << 10)
    );
    assert_eq!((config.vcpus, config.max_vcpus), (2, 2));
    assert_eq!(config.disks.len(), 2);
    assert_eq!(config.nics.len(), 2);
    assert_eq!(config.events.on_crash, Action::Preserve);
    assert_eq!(config.events.on_reboot, Action::Restart);
    assert_eq!(config.uuid.unwrap()[..4], [0x0a, 0x1b, 0x2c, 0x3d]);
}

#[test]
fn unknown_keys_are_warnings_with_the_nearest() {
    let (_, warnings) = good(&format!(
        "{LEAST}memroy = 64\ndhcp='dhcp'\nvnc=0\nvfb=['x']"
    ));
    assert!(
        warnings.contains("web.cfg:3:1: warning: unknown key `memroy`"),
        "{warnings}"
    );
    assert!(warnings.contains("did you mean `memory`?"));
    assert!(warnings.contains("unknown key `dhcp`"));
    assert!(warnings.contains("`vfb` has no effect yet"));
    assert!(!warnings.contains("vnc"));
}

#[test]
fn placement_is_read() {
    let (config, warnings) = good(&format!(
        "{LEAST}vcpus=2\nmaxvcpus=3\ncpus='0-3,^1'\ncpus_soft=['node:1', 2]\ncpu_weight=512\ncap='50'\n\
         pool='fast'\ntsc_mode='native'\nlocaltime=1\nrtc_timeoffset=60\nnomigrate=1",
    ));
    assert_eq!(warnings, "");
    let placement = &config.placement;
    assert_eq!(placement.hard, vec![CpuSet::parse("0-3,^1").unwrap(); 3]);
    assert_eq!(
        placement.soft,
        [CpuSet::parse("node:1").unwrap(), CpuSet::one(2)]
    );
    assert_eq!((placement.weight, placement.cap), (Some(512), Some(50)));
    assert_eq!(placement.pool.as_deref(), Some("fast"));
    assert_eq!((config.tsc_mode, config.time_offset_s), (2, 60));
    assert!(config.local_time);
    // A list for more vCPUs than there are.
    let (config, _) = good(&format!("{LEAST}cpus=[0, '1', 'all']"));
    assert_eq!(config.placement.hard, [CpuSet::one(0)]);
    // What was written by an older release is still understood.
    let mut old = serde_json::to_value(&config).unwrap();
    let keys = old.as_object_mut().unwrap();
    for key in ["placement", "tsc_mode", "time_offset_s", "local_time"] {
        keys.remove(key).unwrap();
    }
    let old: DomainConfig = serde_json::from_value(old).unwrap();
    assert_eq!(old.placement, Placement::default());
}

#[test]
fn the_last_value_wins_and_arguments_come_last() {
    let (config, _) = load(&[
        Source {
            name: "a".into(),
            text: format!("{LEAST}memory=1\nmemory=2"),
        },
        Source {
            name: "arg".into(),
            text: "memory=64".into(),
        },
    ])
    .unwrap();
    assert_eq!(config.memory_kib, 64 << 10);
}

#[test]
fn mistakes_name_line_column_and_remedy() {
    let rows: &[(&str, &str)] = &[
        ("kernel='/k'", "web.cfg: error: the guest has no name"),
        ("name='x'", "web.cfg: error: the guest has no kernel"),
        ("name='x'\nkernel=''", "the guest has no kernel"),
        (
            "name=''\nkernel='/k'",
            "web.cfg:1:6: error: the guest's name \"\" is empty",
        ),
        ("name='a/b'\nkernel='/k'", "holds `/`"),
        ("name='12'\nkernel='/k'", "digits only"),
        (
            "name=['x']\nkernel='/k'",
            "`name` must be a string, not a list",
        ),
        (
            "name='x'\nkernel='/k'\ncpus='0-'",
            "web.cfg:3:6: error: `cpus`: `0-` is no range of CPUs",
        ),
        (
            "name='x'\nkernel='/k'\ncap=70000",
            "`cap` = 70000 is out of range",
        ),
        (
            "name='x'\nkernel='/k'\ntsc_mode='fast'",
            "`tsc_mode` = \"fast\" is no mode",
        ),
        (
            "name='x'\nkernel='/k'\nseclabel='a:b:c'",
            "security labels (FLASK) are not supported",
        ),
        (
            "name='x'\nkernel='/k'\nmemory='lots'",
            "web.cfg:3:8: error: `memory` = \"lots\" is no size",
        ),
        (
            "name='x'\nkernel='/k'\nmemory=0",
            "`memory` is out of range",
        ),
        (
            "name='x'\nkernel='/k'\nmemory=64\nmaxmem=32",
            "maxmem is less",
        ),
        (
            "name='x'\nkernel='/k'\nvcpus=0",
            "`vcpus` = 0 is out of range",
        ),
        (
            "name='x'\nkernel='/k'\nvcpus=4\nmaxvcpus=2",
            "maxvcpus is less",
        ),
        ("name='x'\nkernel='/k'\ntype='hvm'", "only PV guests"),
        ("name='x'\nkernel='/k'\nbuilder='hvm'", "only PV guests"),
        ("name='x'\nkernel='/k'\non_crash='explode'", "is no action"),
        ("name='x'\nkernel='/k'\nuuid='zz'", "is no UUID"),
        (
            "name='x'\nkernel='/k'\ndisk='/a,raw,xvda,w'",
            "must be a list",
        ),
        (
            "name='x'\nkernel='/k'\ndisk=['/a,raw,xvda,w',\n'/b,raw,xvda,w']",
            "web.cfg:4:1: error: there are two disks",
        ),
        (
            "name='x'\nkernel='/k'\ndisk=['/a,qcow,xvda,w']",
            "qemu-img convert",
        ),
        ("name='x'\nkernel='/k'\nvif=['mac=1']", "no MAC"),
        ("name='x'\nkernel='/k'\npci=['0:0']", "PCI"),
        ("name='x'\nkernel='/k'\nname+=['y']", "cannot be appended"),
        ("name = x", "strings go in quotes"),
    ];
    for (text, part) in rows {
        let errors = bad(text);
        assert!(errors.contains(part), "{text:?} said:\n{errors}");
    }
}

#[test]
fn all_mistakes_are_told_at_once() {
    let errors = bad("name='x'\nkernel='/k'\nmemory=0\nvcpus=0");
    assert_eq!(errors.matches("error:").count(), 2, "{errors}");
}

#[test]
fn sizes_have_units() {
    for (text, kib) in [
        ("64", Some(64 << 10)),
        ("64M", Some(64 << 10)),
        ("64 MiB", Some(64 << 10)),
        ("1G", Some(1 << 20)),
        ("512K", Some(512)),
        ("2T", Some(2 << 30)),
        ("", None),
        ("G", None),
        ("1X", None),
        ("99999999999999999999G", None),
    ] {
        assert_eq!(size_kib(text), kib, "{text}");
    }
}

proptest! {
    #[test]
    fn any_config_never_panics(lines in proptest::collection::vec(
        "(name|kernel|memory|disk|vif|uuid|vcpus|on_crash|x)(=|\\+=)('[a-z0-9:,=/]{0,12}'|[0-9]{1,9}|\\['[a-z0-9:,=/]{0,12}'\\])", 0..12)
    ) {
        let _ = load(&sources(&lines.join("\n")));
    }
}
