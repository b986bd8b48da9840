//! One element of `vif=[…]` (xl-network-configuration(5)).

use serde::{Deserialize, Serialize};

/// Highest number of a card.
const MAX_DEVID: u32 = 65_535;

/// A network card as the file describes it, its syntax checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicConfig {
    /// Its MAC address, if one is given.
    pub mac: Option<[u8; 6]>,
    /// The bridge it joins, if one is given.
    pub bridge: Option<String>,
    /// The hotplug script, if one is given.
    pub script: Option<String>,
    /// Addresses, for the script.
    pub ip: Option<String>,
    /// The name of the interface in dom0, if one is given.
    pub vifname: Option<String>,
    /// The interface that a routed one goes out by.
    pub gateway_device: Option<String>,
    /// Its number, if one is given.
    pub devid: Option<u32>,
    /// Largest packet, in bytes.
    pub mtu: Option<u32>,
    /// A limit to what the guest may send.
    pub rate: Option<RateLimit>,
    /// `backend=`, if given and not dom0.
    pub backend: Option<String>,
    /// Whether the guest may trust the back end with its memory; it may, if nothing is said.
    #[serde(default)]
    pub trusted: Option<bool>,
}

/// A limit to what a guest may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimit {
    /// Bytes that may be sent each interval.
    pub bytes_per_interval: u64,
    /// The interval in microseconds.
    pub interval_us: u32,
}

/// What is wrong, and what to do about it.
type Complaint = (String, Option<String>);

impl NicConfig {
    /// Reads one element; what is no mistake but odd goes to `warnings`.
    ///
    /// # Errors
    /// What is wrong, and what to do about it if that is known.
    pub fn parse(text: &str, warnings: &mut Vec<Complaint>) -> Result<NicConfig, Complaint> {
        let mut nic = NicConfig::default();
        for item in text.split(',').map(str::trim).filter(|i| !i.is_empty()) {
            match item.split_once('=') {
                Some((key, value)) => nic.keyed(key.trim(), value.trim(), warnings)?,
                None if item == "trusted" => nic.trusted = Some(true),
                None if item == "untrusted" => nic.trusted = Some(false),
                None => warnings.push((
                    format!("`{item}` is ignored"),
                    Some("a card is described by key=value, such as bridge=xenbr0".into()),
                )),
            }
        }
        Ok(nic)
    }

    fn keyed(
        &mut self,
        key: &str,
        value: &str,
        warnings: &mut Vec<Complaint>,
    ) -> Result<(), Complaint> {
        let text = || Some(value.to_string());
        let number = || {
            value
                .parse::<u32>()
                .map_err(|_| (format!("{key}: `{value}` is no number"), None))
        };
        match key {
            "mac" => {
                self.mac = Some(parse_mac(value).ok_or_else(|| {
                    (
                        format!("`{value}` is no MAC address"),
                        Some("six hexadecimal bytes, the first even: 00:16:3e:01:02:03".into()),
                    )
                })?);
            }
            "bridge" => self.bridge = Some(interface(value)?),
            "vifname" => self.vifname = Some(interface(value)?),
            "gatewaydev" | "netdev" => self.gateway_device = Some(interface(value)?),
            "script" => self.script = text(),
            "ip" => self.ip = text(),
            "backend" => self.backend = text().filter(|v| v != "0" && v != "Domain-0"),
            "devid" => {
                let devid = number()?;
                // The interface's name in dom0 has room for so many digits.
                if devid > MAX_DEVID {
                    let help = format!("0 to {MAX_DEVID}");
                    return Err((format!("a devid of {devid} cannot be"), Some(help)));
                }
                self.devid = Some(devid);
            }
            "mtu" => {
                let mtu = number()?;
                if !(68..=65_517).contains(&mtu) {
                    return Err((
                        format!("an MTU of {mtu} cannot be"),
                        Some("68 to 65517".into()),
                    ));
                }
                self.mtu = Some(mtu);
            }
            "rate" => {
                self.rate = Some(RateLimit::parse(value).ok_or_else(|| {
                    (
                        format!("`{value}` is no rate"),
                        Some("such as 10Mb/s or 1MB/s@20ms".into()),
                    )
                })?);
            }
            "model" | "type" => {}
            _ => {
                let known = [
                    "mac",
                    "bridge",
                    "script",
                    "ip",
                    "vifname",
                    "gatewaydev",
                    "devid",
                    "mtu",
                    "rate",
                    "backend",
                    "model",
                    "type",
                ];
                let near = super::diag::nearest(key, known).map(|k| format!("did you mean `{k}`?"));
                warnings.push((format!("unknown vif parameter `{key}` is ignored"), near));
            }
        }
        Ok(())
    }
}

/// A name the kernel takes for an interface: 1 to 15 bytes, no `/`, no blank.
fn interface(name: &str) -> Result<String, Complaint> {
    let fits = (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && name
            .bytes()
            .all(|b| b.is_ascii_graphic() && b != b'/' && b != b':');
    if fits {
        return Ok(name.to_string());
    }
    Err((
        format!("`{name}` is no name of a network interface"),
        Some("1 to 15 characters, no blank, no `/`, no `:`".into()),
    ))
}

/// Six bytes in hexadecimal with colons, not a multicast address.
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next()?;
        if part.is_empty() || part.len() > 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    (parts.next().is_none() && mac[0] & 1 == 0).then_some(mac)
}

impl RateLimit {
    /// Reads `N[GMK](b|B)/s[@N[m|u][s]]`; the interval is 50 ms if none is given, and seconds without a unit.
    fn parse(text: &str) -> Option<RateLimit> {
        let (rate, interval) = match text.split_once('@') {
            Some((rate, interval)) => (rate, interval),
            None => (text, "50ms"),
        };
        let rate = rate.strip_suffix("/s")?;
        let (rate, per_byte) = match (rate.strip_suffix('B'), rate.strip_suffix('b')) {
            (Some(rate), _) => (rate, 1),
            (None, Some(rate)) => (rate, 8),
            (None, None) => return None,
        };
        let (count, factor) = match rate.as_bytes().last()? {
            b'G' => (&rate[..rate.len() - 1], 1_000_000_000),
            b'M' => (&rate[..rate.len() - 1], 1_000_000),
            b'K' => (&rate[..rate.len() - 1], 1_000),
            _ => (rate, 1),
        };
        let number = |digits: &str| {
            let plain = digits.bytes().all(|b| b.is_ascii_digit());
            digits.parse::<u64>().ok().filter(|_| plain)
        };
        let bytes_per_s = number(count)?.checked_mul(factor)? / per_byte;
        let interval = interval.strip_suffix('s').unwrap_or(interval);
        let (count, unit_us) = match (interval.strip_suffix('m'), interval.strip_suffix('u')) {
            (Some(count), _) => (count, 1_000),
            (None, Some(count)) => (count, 1),
            (None, None) => (interval, 1_000_000),
        };
        let interval_us = number(count)?.checked_mul(unit_us)?;
        let interval_us = u32::try_from(interval_us).ok()?;
        let bytes_per_interval = bytes_per_s.checked_mul(interval_us.into())? / 1_000_000;
        (bytes_per_interval > 0).then_some(RateLimit {
            bytes_per_interval,
            interval_us,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<(NicConfig, Vec<Complaint>), Complaint> {
        let mut warnings = Vec::new();
        NicConfig::parse(text, &mut warnings).map(|nic| (nic, warnings))
    }

    #[test]
    fn cards_are_read() {
        let (nic, warnings) =
            parse("mac=00:16:3E:1:2:3, bridge=xenbr0 ,vifname=web,script=vif-bridge,mtu=1500")
                .unwrap();
        assert_eq!(nic.mac, Some([0, 0x16, 0x3e, 1, 2, 3]));
        assert_eq!(nic.bridge.as_deref(), Some("xenbr0"));
        assert_eq!(nic.vifname.as_deref(), Some("web"));
        assert_eq!(nic.mtu, Some(1500));
        assert!(warnings.is_empty());
        assert_eq!(parse("").unwrap().0, NicConfig::default());
        let (_, warnings) = parse("brigde=x,hello").unwrap();
        assert!(warnings[0].0.contains("brigde"));
        assert_eq!(warnings[0].1.as_deref(), Some("did you mean `bridge`?"));
        assert!(warnings[1].0.contains("hello"));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("mac=00:16:3e:00:00", "no MAC"),
            ("mac=01:16:3e:00:00:00", "no MAC"),
            ("mac=00:16:3e:00:00:0g", "no MAC"),
            ("bridge=a/b", "no name of a network interface"),
            ("bridge=", "no name"),
            ("vifname=averyveryverylongname", "no name"),
            ("mtu=12", "MTU"),
            ("devid=x", "no number"),
            ("devid=65536", "devid of 65536"),
            ("rate=fast", "no rate"),
        ] {
            let (message, _) = parse(text).unwrap_err();
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn rates_are_bytes_per_interval() {
        for (text, wanted) in [
            ("10Mb/s", Some((62_500, 50_000))),
            ("1MB/s@20ms", Some((20_000, 20_000))),
            ("250KB/s@1s", Some((250_000, 1_000_000))),
            ("1Gb/s@100us", Some((12_500, 100))),
            ("1KB/s@2", Some((2_000, 2_000_000))),
            ("1KB/s@20m", Some((20, 20_000))),
            ("1MB", None),
            ("MB/s", None),
            ("1MB/s@5000s", None),
            ("0B/s", None),
        ] {
            let rate = RateLimit::parse(text).map(|r| (r.bytes_per_interval, r.interval_us));
            assert_eq!(rate, wanted, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_never_panics(text in "([a-z]{1,4}|=|,|:|/|@|é|mac=|rate=|[0-9]|b/s)*") {
            let _ = parse(&text);
        }
    }
}
