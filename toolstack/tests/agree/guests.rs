//! Lists of CPUs, cards and whole guests against what `xl create -n` prints.

use serde_json::{Value, json};
use xen_hal::CpuPlace;
use xlrs::config::{CpuSet, NicConfig, Source, load};
use xlrs::nodes::Nic;
use xlrs::userdata::{libxl_json, nic_json};

use crate::generate::Maker;
use crate::tally::{Difference, Outcome, Tally};
use crate::witness::Witness;

/// What xl prints for a guest with these lines.
fn dry_run(witness: &mut Witness, lines: &str) -> Outcome<Value> {
    let least = "type='pv'\nname='web'\nkernel='/k'\nmemory=64\n";
    let answer = witness.ask(
        b'x',
        &["create", "-n", "/dev/null", &format!("{least}{lines}\n")],
    );
    match answer.status {
        0 => Ok(serde_json::from_str(&answer.text).expect("xl prints JSON")),
        142 => panic!("xl ran for ten seconds at {lines:?}"),
        status => Err(format!("exit status {status}")),
    }
}

/// xl's opinion of each text: of all at once if it refuses none of them.
fn ask_many(
    witness: &mut Witness,
    texts: &[String],
    lines: fn(&[String]) -> String,
    path: &[&str],
) -> Vec<Outcome<Value>> {
    let mut ask = |texts: &[String]| -> Result<Vec<Value>, String> {
        let guest = dry_run(witness, &lines(texts))?;
        let list = path.iter().fold(&guest, |value, key| &value[key]);
        let list = list.as_array().cloned().unwrap_or_default();
        // What is left out at the end has its default.
        let all = (0..texts.len()).map(|index| list.get(index).cloned().unwrap_or(Value::Null));
        Ok(all.collect())
    };
    match ask(texts) {
        Ok(list) => list.into_iter().map(Ok).collect(),
        Err(_) => {
            let one =
                |text: &String| ask(std::slice::from_ref(text)).map(|mut list| list.remove(0));
            texts.iter().map(one).collect()
        }
    }
}

/// Texts that are asked about in one call of xl.
const TOGETHER: usize = 5;

#[test]
fn lists_of_cpus_mean_what_xl_says() {
    let Some(mut witness) = Witness::start("lists_of_cpus_mean_what_xl_says") else {
        return;
    };
    // The host of witness.c.
    let place = |cpu: u32| CpuPlace {
        core: cpu,
        socket: cpu / 4,
        node: cpu / 4,
    };
    let host: Vec<_> = (0..8).map(|cpu| Some(place(cpu))).collect();
    let mut maker = Maker::new(5);
    let mut tally = Tally::new("lists of CPUs", maker.seed, CPUS);
    for _ in 0..Maker::count(900) {
        let texts: Vec<String> = (0..TOGETHER).map(|_| cpus_text(&mut maker)).collect();
        let theirs = ask_many(
            &mut witness,
            &texts,
            cpus_lines,
            &["b_info", "vcpu_hard_affinity"],
        );
        for (text, theirs) in texts.iter().zip(theirs) {
            let ours = CpuSet::parse(text).and_then(|set| {
                let cpus: Vec<u32> = set.resolve(&host).iter().filter(|cpu| *cpu < 8).collect();
                if cpus.is_empty() {
                    Err("names none of these CPUs".into())
                } else {
                    Ok(json!(cpus))
                }
            });
            tally.compare(text, &ours, &theirs);
        }
    }
    tally.finish(1_500);
}

fn cpus_lines(texts: &[String]) -> String {
    format!("vcpus={}\ncpus=[\"{}\"]", texts.len(), texts.join("\",\""))
}

fn cpus_text(maker: &mut Maker) -> String {
    let mut parts = Vec::new();
    for _ in 0..1 + maker.below(4) {
        let (from, to) = (maker.below(10), maker.below(12));
        let range = match maker.below(12) {
            0 => "all".into(),
            1 => format!("{from}-{}", from + to),
            2 => format!("{from}-{to}"),
            3..6 => format!("{}-{}", from.min(5), from.min(5) + to.min(3)),
            6 => format!("node:{}", maker.below(3)),
            7 => format!("nodes:{}", maker.below(3)),
            8 => format!("nodes:0-{}", maker.below(3)),
            _ => from.min(7).to_string(),
        };
        let out = if maker.percent(15) && !parts.is_empty() {
            "^"
        } else {
            ""
        };
        parts.push(format!("{out}{range}"));
    }
    let text = parts.join(",");
    // From 5--8 it counts to the end of the numbers.
    maker
        .spoil(text, 6)
        .replace(['"', '\\', '\n'], "x")
        .replace("--", "-")
}

const CPUS: &[Difference<Value>] = &[
    row(
        "strtoul",
        "xl takes signs and blanks before any number, and -8 for the end of a range",
        |text, ours, theirs| {
            text.contains(['-', '+', ' ', '\t']) && ours.is_err() && theirs.is_ok()
        },
    ),
    row(
        "blanks",
        "a blank before a list is no mistake",
        |text, ours, theirs| text.contains([' ', '\t']) && ours.is_ok() && theirs.is_err(),
    ),
];

#[test]
fn cards_mean_what_xl_says() {
    let Some(mut witness) = Witness::start("cards_mean_what_xl_says") else {
        return;
    };
    let mut maker = Maker::new(6);
    let mut tally = Tally::new("cards", maker.seed, CARDS);
    for _ in 0..Maker::count(900) {
        let texts: Vec<String> = (0..TOGETHER).map(|_| card_text(&mut maker)).collect();
        let theirs = ask_many(&mut witness, &texts, card_lines, &["nics"]);
        for (text, theirs) in texts.iter().zip(theirs) {
            let ours = NicConfig::parse(text, &mut Vec::new());
            let ours = ours.map(card).map_err(|(message, _)| message);
            let theirs = theirs.map(|mut card| {
                // Without devid= it is the place in the list.
                if !text.contains("devid") {
                    card["devid"] = json!(0);
                }
                // A back end in dom0 is none that need be named.
                if card["backend_domname"] == "0" {
                    card.as_object_mut()
                        .expect("an object")
                        .shift_remove("backend_domname");
                }
                card
            });
            tally.compare(text, &ours, &theirs);
        }
    }
    tally.finish(1_500);
}

fn card_lines(texts: &[String]) -> String {
    format!("vif=[\"{}\"]", texts.join("\",\""))
}

/// libxl's JSON of it, without what xl leaves to libxl.
fn card(config: NicConfig) -> Value {
    let nic = Nic {
        devid: config.devid.unwrap_or(0),
        mac: config.mac.unwrap_or_default(),
        bridge: config.bridge.clone().unwrap_or_default(),
        mtu: config.mtu.unwrap_or(1500),
        config,
    };
    let mut card = nic_json(&nic);
    for (key, given) in [
        ("mac", nic.config.mac.is_some()),
        ("bridge", nic.config.bridge.is_some()),
    ] {
        if !given {
            card.as_object_mut().expect("an object").shift_remove(key);
        }
    }
    card
}

fn card_text(maker: &mut Maker) -> String {
    const PARTS: &[&str] = &[
        "mac=00:16:3e:01:02:03",
        "mac=00:16:3E:aa:bb:cc",
        "mac=0:16:3e:1:2:3",
        "bridge=xenbr0",
        "bridge=br1",
        "script=vif-route",
        "script=/s",
        "ip=10.0.0.2",
        "ip=10.0.0.2 fe80::1",
        "vifname=web",
        "gatewaydev=eth0",
        "netdev=eth1",
        "backend=net",
        "backend=0",
        "rate=10Mb/s",
        "rate=1MB/s@20ms",
        "devid=3",
        "mtu=1400",
        "mtu=9000",
        "untrusted",
        "trusted",
        "",
    ];
    const BAD: &[&str] = &[
        "model=e1000",
        "type=ioemu",
        "type=vif",
        "mac=xx",
        "mac=01:00:00:00:00:01",
        "mac=00:16:3e",
        "mac=1:2:3:4:5:6:7",
        "bridge=",
        "vifname=a/b",
        "rate=x",
        "devid=x",
        "mtu=x",
        "mtu=1",
        "mtu=70000",
        "devid=70000",
        "colour=red",
        "brigde=x",
        "accel",
        "vifname=interfacename16",
        "script=",
    ];
    let count = maker.below(5);
    let parts: Vec<&str> = (0..count)
        .map(|_| {
            let bad = maker.percent(5);
            maker.one(if bad { BAD } else { PARTS })
        })
        .collect();
    let text = parts.join(if maker.percent(3) {
        " , "
    } else {
        maker.one(&[",", ", "])
    });
    maker.spoil(text, 4).replace(['"', '\\', '\n'], "x")
}

const CARDS: &[Difference<Value>] = &[
    row(
        "blanks",
        "xl takes a blank before a comma as part of a name",
        |text, _, _| {
            text.split(',').any(|part| {
                part != part.trim_end()
                    || part.contains("= ")
                    || part.contains(" =")
                    || part.contains('\t')
            })
        },
    ),
    row(
        "emulated cards",
        "a PV guest has none, so their model and type are passed over",
        |text, ours, _| (text.contains("model=") || text.contains("type=")) && ours.is_ok(),
    ),
    row(
        "MAC address",
        "xl takes nonsense for a part of an address",
        |_, ours, theirs| strict(ours, theirs, "is no MAC"),
    ),
    row(
        "interface",
        "no interface can have the name, so xl fails later",
        |_, ours, theirs| strict(ours, theirs, "is no name of a network interface"),
    ),
    row(
        "number",
        "xl takes any number here, and the card does not come up",
        |_, ours, theirs| {
            ["cannot be", "is no number", "is no rate"]
                .iter()
                .any(|part| strict(ours, theirs, part))
        },
    ),
];

#[test]
fn guests_are_what_xl_says() {
    let Some(mut witness) = Witness::start("guests_are_what_xl_says") else {
        return;
    };
    let mut maker = Maker::new(7);
    let mut tally = Tally::new("guests", maker.seed, GUESTS);
    for _ in 0..Maker::count(1_500) {
        let text = guest_text(&mut maker);
        let least = "type='pv'\nname='web'\nkernel='/k'\nmemory=64\nvcpus=2\n";
        let source = Source {
            name: "t".into(),
            text: format!("{least}{text}\n"),
        };
        let ours = load(&[source])
            .map_err(|e| e.to_string())
            .map(|(config, _)| {
                let mut guest = libxl_json(&config, &[0; 16], &[]);
                let cards: Vec<Value> = (0..)
                    .zip(&config.nics)
                    .map(|(place, nic)| {
                        let mut nic = nic.clone();
                        nic.devid = nic.devid.or(Some(place));
                        card(nic)
                    })
                    .collect();
                if !cards.is_empty() {
                    guest["nics"] = json!(cards);
                }
                named(guest)
            });
        let theirs = dry_run(&mut witness, &format!("vcpus=2\n{text}")).map(named);
        tally.compare(&text, &ours, &theirs);
    }
    tally.finish(500);
}

/// Without the UUID, which is made anew each time.
fn named(mut guest: Value) -> Value {
    guest["c_info"]["uuid"] = Value::Null;
    guest
}

fn guest_text(maker: &mut Maker) -> String {
    const LINES: &[&str] = &[
        "memory=128",
        "memory='96'",
        "memory=0x40",
        "maxmem=256",
        "maxmem='128'",
        "vcpus=3",
        "vcpus='4'",
        "maxvcpus=4",
        "cpu_weight=512",
        "cap=50",
        "cap=0",
        "ramdisk='/initrd'",
        "cmdline='quiet'",
        "extra='quiet splash'",
        "root='/dev/xvda'",
        "extra=5",
        "on_poweroff='preserve'",
        "on_poweroff='destroy'",
        "on_reboot='destroy'",
        "on_reboot='restart'",
        "on_crash='restart'",
        "on_crash='coredump-destroy'",
        "on_crash='coredump-restart'",
        "on_crash='rename-restart'",
        "on_watchdog='restart'",
        "on_soft_reset='destroy'",
        "on_soft_reset='soft-reset'",
        "max_grant_frames=64",
        "max_maptrack_frames=128",
        "max_grant_version=1",
        "max_event_channels=2047",
        "tsc_mode='native'",
        "tsc_mode=1",
        "tsc_mode='default'",
        "localtime=1",
        "rtc_timeoffset=3600",
        "builder='generic'",
        "cpus='0-3'",
        "cpus=['0','1-2']",
        "cpus='1'",
        "cpus=2",
        "cpus_soft='4'",
        "cpus_soft=['4','5']",
        "disk=['/a.img,raw,xvda,w']",
        "disk=['/a.img,qcow2,xvda,r','phy:/dev/b,xvdb,w']",
        "disk=['/a,raw,xvda,w,discard,direct-io-safe']",
        "disk=[]",
        "vif=['']",
        "vif=['bridge=xenbr0,mac=00:16:3e:00:00:01']",
        "vif=['bridge=a','ip=1.2.3.4,script=/s']",
        "vif=['devid=5','rate=1MB/s']",
        "vif=[]",
        "vif+=['bridge=b']",
        "disk+=['/c,raw,xvdc,w']",
        "cmdline+=' more'",
        "claim_mode=1",
        "dhcp='dhcp'",
        "vnc=0",
        "bootargs='x'",
        "cpu='0,1'",
        "cpu_cap=5",
        "period=10000",
        "extratime=1",
    ];
    const BAD: &[&str] = &[
        "on_crash='explode'",
        "on_crash='coredump_destroy'",
        "tsc_mode='x'",
        "tsc_mode=9",
        "maxvcpus=1",
        "maxmem=32",
        "memory='64M'",
        "memory='x'",
        "cpus='x'",
        "cpus='^0'",
        "disk=['/a,rav,xvda,w']",
        "disk='/a,raw,xvda,w'",
        "vif='bridge=x'",
        "vif=['rate=x']",
        "uuid='x'",
        "name=''",
        "name='a/b'",
        "vcpus=0",
        "vcpus='x'",
        "cap='x'",
        "cpu_weight=70000",
        "cpu_weight=-1",
        "rtc_timeoffset=-5",
        "kernel=''",
        "type='hvm'",
        "builder='hvm'",
        "type='x'",
        "localtime='yes'",
        "localtime=2",
        "disk=['/a,raw,xvda,w','/b,raw,xvda,w']",
        "max_event_channels=0",
        "vif=[1]",
        "extra=['a']",
        "memory=[1]",
        "cpus='99'",
        "vif=['mac=zz']",
        "localtime=0",
    ];
    let count = 1 + maker.below(6);
    let lines: Vec<&str> = (0..count)
        .map(|_| {
            let bad = maker.percent(5);
            maker.one(if bad { BAD } else { LINES })
        })
        .collect();
    lines.join("\n")
}

const fn row(
    name: &'static str,
    why: &'static str,
    is: fn(&str, &Outcome<Value>, &Outcome<Value>) -> bool,
) -> Difference<Value> {
    Difference { name, why, is }
}

/// What xl takes and we refuse, with a part of our message.
fn strict(ours: &Outcome<Value>, theirs: &Outcome<Value>, part: &str) -> bool {
    ours.as_ref().is_err_and(|why| why.contains(part)) && theirs.is_ok()
}

const GUESTS: &[Difference<Value>] = &[
    row(
        "name",
        "a guest without a name, or with a / in it, cannot be managed",
        |_, ours, theirs| strict(ours, theirs, "the guest's name"),
    ),
    row(
        "kernel",
        "xl fails later, when it opens the file without a name",
        |_, ours, theirs| strict(ours, theirs, "the guest has no kernel"),
    ),
    row(
        "wrong type",
        "xl ignores a value of a wrong kind, and the guest is not what was asked for",
        |_, ours, theirs| strict(ours, theirs, " must be ") || strict(ours, theirs, "is no size"),
    ),
    row(
        "out of range",
        "xl takes any number here, and the guest is another or fails later",
        |_, ours, theirs| strict(ours, theirs, "out of range"),
    ),
    row(
        "less memory",
        "xl takes maxmem below memory, and the guest does not start",
        |_, ours, theirs| strict(ours, theirs, "maxmem is less than memory"),
    ),
    row(
        "two disks",
        "xl finds out when the second disk is added",
        |_, ours, theirs| strict(ours, theirs, "there are two disks"),
    ),
    row(
        "other guests",
        "only PV guests are made",
        |_, ours, theirs| strict(ours, theirs, "only PV guests"),
    ),
    row(
        "MAC address",
        "xl takes nonsense for a part of an address",
        |_, ours, theirs| strict(ours, theirs, "is no MAC"),
    ),
    row(
        "unit",
        "a size may have a unit; xl ignores the line",
        |text, ours, _| text.contains("64M") && ours.is_ok(),
    ),
    row(
        "underscore",
        "the words of libxl's JSON are understood too",
        |text, ours, theirs| text.contains("coredump_destroy") && ours.is_ok() && theirs.is_err(),
    ),
    row(
        "localtime",
        "0 is what it is without the line; xl writes it down",
        |text, ours, _| text.contains("localtime=0") && ours.is_ok(),
    ),
    row(
        "CPU 99",
        "which CPUs there are is looked up when the guest is created",
        |text, ours, theirs| text.contains("'99'") && ours.is_ok() && theirs.is_err(),
    ),
];
