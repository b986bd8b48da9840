# Completions of xlrs for fish: what may follow is asked of the program itself.
function __xlrs_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    test (count $current) -eq 0; and set current ''
    set -l answer (command $words[1] docs complete -- $words[2..-1] $current 2>/dev/null)
    if test $status -ne 0
        __fish_complete_path $current
    else
        string join -- \n $answer
    end
end
complete -c xlrs -f -a '(__xlrs_complete)'
