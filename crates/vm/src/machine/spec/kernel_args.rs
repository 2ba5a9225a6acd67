//! What is added to the kernel's command line.

use super::{Interface, SpecError};

/// The kernel's arguments with the address of the interface that it is to set up, if there is one, before
/// those that are for init.
pub(super) fn with_address(
    kernel_args: String,
    interfaces: &[Interface],
) -> Result<String, SpecError> {
    let Some(ip) = interfaces
        .iter()
        .find_map(|interface| interface.ip.as_ref())
    else {
        return Ok(kernel_args);
    };
    let end = kernel_args
        .match_indices("--")
        .map(|(at, _)| at)
        .find(|at| {
            kernel_args[..*at].ends_with(' ')
                && matches!(kernel_args.as_bytes().get(at + 2), None | Some(b' '))
        });
    let (kernel, init) = kernel_args.split_at(end.unwrap_or(kernel_args.len()));
    if kernel
        .split_ascii_whitespace()
        .any(|arg| arg.starts_with("ip="))
    {
        return Err(SpecError::Value {
            field: "KernelArgs".to_owned(),
            problem: "they have an ip= of their own, and an interface has an IPConfig".to_owned(),
        });
    }
    let words = [kernel.trim_end(), &ip.kernel_arg(), init];
    let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
    Ok(words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::super::Ip;
    use super::*;

    #[test]
    fn an_address_is_an_argument_of_the_kernel_s() {
        let interface = Interface {
            tap: "tap0".into(),
            mac: None,
            rx: None,
            tx: None,
            mmds: false,
            ip: Some(Ip {
                address: [10, 0, 0, 2].into(),
                prefix: 24,
                gateway: None,
                nameservers: Vec::new(),
            }),
        };
        let with = |args: &str| with_address(args.to_owned(), std::slice::from_ref(&interface));
        let ip = "ip=10.0.0.2:::255.255.255.0:::off:::";
        assert_eq!(with("b a=1").unwrap(), format!("b a=1 {ip}"));
        assert_eq!(with("b -- -debug").unwrap(), format!("b {ip} -- -debug"));
        assert_eq!(with("a=x--y").unwrap(), format!("a=x--y {ip}"));
        assert_eq!(with("").unwrap(), ip);
        assert!(with("a ip=dhcp").is_err());
        assert_eq!(with_address("ip=dhcp".into(), &[]).unwrap(), "ip=dhcp");
    }
}
