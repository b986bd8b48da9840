#compdef xlrs
# Completions of xlrs for zsh: what may follow is asked of the program itself.
_xlrs() {
    local answer line
    local -a found
    if ! answer=$("${words[1]}" docs complete -- "${(@)words[2,CURRENT]}" 2>/dev/null); then
        _files
        return
    fi
    for line in "${(@f)answer}"; do
        [[ -n $line ]] && found+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}")
    done
    (( $#found )) && _describe xlrs found
}
# As a file in fpath it is the function's body; else it is read.
if [[ $funcstack[1] == _xlrs ]]; then
    _xlrs "$@"
else
    compdef _xlrs xlrs
fi
