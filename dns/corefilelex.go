package dns

import "strings"

// corefileLine is one line's words.
type corefileLine struct {
	n     int
	words []string
}

// lexCorefile splits a text into lines of words: quotes keep blanks together, and
// \" is a quote within them; # begins a comment, and a brace is a word of its own
// at a line's end.
func lexCorefile(text string) (lines []corefileLine) {
	for i, raw := range strings.Split(text, "\n") {
		l := corefileLine{n: i + 1}
		var word strings.Builder
		quoted, any, escaped := false, false, false
		flush := func() {
			if any {
				l.words = append(l.words, word.String())
				word.Reset()
				any = false
			}
		}
	scan:
		for _, c := range raw {
			if escaped && c != '"' {
				word.WriteByte('\\')
			}
			switch {
			case escaped:
				word.WriteRune(c)
				escaped = false
			case quoted && c == '\\':
				escaped = true
			case c == '"':
				quoted, any = !quoted, true
			case !quoted && (c == ' ' || c == '\t' || c == '\r'):
				flush()
			case !quoted && c == '#' && !any:
				break scan
			default:
				word.WriteRune(c)
				any = true
			}
		}
		flush()
		if len(l.words) > 0 {
			lines = append(lines, l)
		}
	}
	return lines
}
