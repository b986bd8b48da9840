# Completions of xlrs for bash: what may follow is asked of the program itself.
_xlrs() {
    local answer word
    COMPREPLY=()
    if ! answer=$("$1" docs complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null); then
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -f -- "${COMP_WORDS[COMP_CWORD]}")
        return
    fi
    while IFS=$'\t' read -r word _; do
        [[ -n $word ]] && COMPREPLY+=("$(printf %q "$word")")
    done <<<"$answer"
}
complete -F _xlrs xlrs
